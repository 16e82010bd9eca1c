// matmul: [N,T,H,M,K] times [N,T,H,K,P] -> [N,T,H,M,P], a product of matrices for each n, t and h; where one operand
// has a size of 1 there, its matrix serves all. f32.
#include "../cpu/levels.h"
#include "../cpu/vec.h"

// z [rows, columns] = x [rows, inner] times y [inner, columns]
OCTCONV_DECLARE(void multiplyRows(const float* x, const float* y, float* z, ptrdiff_t rows, ptrdiff_t inner,
                                  ptrdiff_t columns))

namespace octconv::OCTCONV_LEVEL {

template <int rows>
static void multiply(const float* x, const float* y, float* z, ptrdiff_t inner, ptrdiff_t columns) {
  for (ptrdiff_t j = 0; j < columns; j += lanes) {
    const int count = columns - j < lanes ? static_cast<int>(columns - j) : lanes;
    Vec sums[rows] = {};
    for (ptrdiff_t k = 0; k < inner; k++) {
      const float* from = y + k * columns + j;
      const Vec some = count == lanes ? load(from) : load(from, count);
      for (int r = 0; r < rows; r++) sums[r] = multiplyAdd(splat(x[r * inner + k]), some, sums[r]);
    }
    for (int r = 0; r < rows; r++)
      count == lanes ? store(z + r * columns + j, sums[r]) : store(z + r * columns + j, sums[r], count);
  }
}

void multiplyRows(const float* x, const float* y, float* z, ptrdiff_t rows, ptrdiff_t inner, ptrdiff_t columns) {
  constexpr int block = 8;  // sums stay in registers
  ptrdiff_t r = 0;
  for (; r + block <= rows; r += block) multiply<block>(x + r * inner, y, z + r * columns, inner, columns);
  for (; r < rows; r++) multiply<1>(x + r * inner, y, z + r * columns, inner, columns);
}

}  // namespace octconv::OCTCONV_LEVEL

#if OCTCONV_MAIN
#include "../cpu/kernel.h"

namespace octconv {
namespace {

void check(const Node& node) {
  node.want(2, 1);
  const Shape x = node.in(0), y = node.in(1), z = node.out(0);
  const auto joint = [&](int64_t a, int64_t b) { return a == b || a == 1 || b == 1 ? std::max(a, b) : int64_t{-1}; };
  if (x.c != y.w || z != Shape{joint(x.n, y.n), joint(x.t, y.t), joint(x.h, y.h), x.w, y.c})
    fail("matmul: inputs ", x, " and ", y, ", output ", z, ", wanted [N,T,H,M,K] and [N,T,H,K,P] to [N,T,H,M,P]");
}

// Where the matrix of an operand begins for a product.
int64_t matrixOf(const Shape& s, const Shape& z, int64_t product) {
  const auto at = [](int64_t size, int64_t i) { return size == 1 ? 0 : i; };
  const int64_t n = product / (z.t * z.h), t = product / z.h % z.t, h = product % z.h;
  return ((at(s.n, n) * s.t + at(s.t, t)) * s.h + at(s.h, h)) * s.w * s.c;
}

Kernel slow(const Node& node, int) {
  const Shape x = node.in(0), y = node.in(1), z = node.out(0);
  return {[=](Run& run) {
    for (int64_t i = 0; i < z.elements(); i++) {
      const int64_t product = i / (z.c * z.w), row = i / z.c % z.w;
      const float* from = run.in<float>(0) + matrixOf(x, z, product) + row * x.c;
      const float* by = run.in<float>(1) + matrixOf(y, z, product) + i % z.c;
      double sum = 0;
      for (int64_t k = 0; k < x.c; k++) sum += static_cast<double>(from[k]) * by[k * z.c];
      run.out<float>(0)[i] = static_cast<float>(sum);
    }
  }};
}

Kernel fast(const Node& node, int) {
  const Shape x = node.in(0), y = node.in(1), z = node.out(0);
  const int64_t parts = pieces(z.w, 16);  // of the rows of a product
  return {[=, loop = OCTCONV_PICK(multiplyRows)](Run& run) {
    run.parallel(z.rows() * parts, [&](int64_t task, char*) {
      const int64_t product = task / parts;
      const auto [begin, end] = piece(z.w, parts, task % parts);
      loop(run.in<float>(0) + matrixOf(x, z, product) + begin * x.c, run.in<float>(1) + matrixOf(y, z, product),
           run.out<float>(0) + (product * z.w + begin) * z.c, end - begin, x.c, z.c);
    });
  }};
}

const Registered<Contract> contract{"matmul", {check}};
const Registered<Kernels<Reference>> onReference{"matmul", {slow}};
const Registered<Kernels<Cpu>> onCpu{"matmul", {fast}};

}  // namespace
}  // namespace octconv
#endif
