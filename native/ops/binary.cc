// add, sub, mul, div: x op y, where either may have a size of 1 along an axis, which stands for all of the other's:
// [N,C] (which is [N,1,1,1,C]) is one number per image and channel, [1,1,1,1,1] one number. Computed in f32; inputs and
// output may each be f32, f16, bf16 or u8.
#include "../cpu/levels.h"
#include "../cpu/vec.h"
#include "functions.h"

// z[i] = x[i] op y[i]; a step is 1, or 0 for one number.
OCTCONV_DECLARE(void combine(Binary op, const float* x, ptrdiff_t xStep, const float* y, ptrdiff_t yStep, float* z,
                             ptrdiff_t count))

namespace octconv::OCTCONV_LEVEL {

template <class F>
static void combineBy(const F& f, const float* x, ptrdiff_t xStep, const float* y, ptrdiff_t yStep, float* z,
                      ptrdiff_t count) {
  const Vec oneX = splat(*x), oneY = splat(*y);
  ptrdiff_t i = 0;
  for (; i + lanes <= count; i += lanes) store(z + i, f(xStep ? load(x + i) : oneX, yStep ? load(y + i) : oneY));
  const int left = static_cast<int>(count - i);
  if (left) store(z + i, f(xStep ? load(x + i, left) : oneX, yStep ? load(y + i, left) : oneY), left);
}

void combine(Binary op, const float* x, ptrdiff_t xStep, const float* y, ptrdiff_t yStep, float* z, ptrdiff_t count) {
  const auto by = [&](const auto& f) { combineBy(f, x, xStep, y, yStep, z, count); };
  if (op == Binary::add) by([](Vec a, Vec b) { return a + b; });
  if (op == Binary::sub) by([](Vec a, Vec b) { return a - b; });
  if (op == Binary::mul) by([](Vec a, Vec b) { return a * b; });
  if (op == Binary::div) by([](Vec a, Vec b) { return a / b; });
}

}  // namespace octconv::OCTCONV_LEVEL

#if OCTCONV_MAIN
#include "../cpu/floats.h"
#include "../cpu/walk.h"

namespace octconv {
namespace {

constexpr std::pair<const char*, Binary> names[] = {
    {"add", Binary::add}, {"sub", Binary::sub}, {"mul", Binary::mul}, {"div", Binary::div}};

Binary operationOf(const Node& node) {
  for (const auto& [name, op] : names)
    if (node.op == name) return op;
  fail(node.op, ": this is no op of two operands");
}

void check(const Node& node) {
  node.want(2, 1);
  const auto x = sizesOf(node.in(0)), y = sizesOf(node.in(1)), z = sizesOf(node.out(0));
  for (size_t axis = 0; axis < 5; axis++)
    if ((x[axis] != y[axis] && x[axis] != 1 && y[axis] != 1) || z[axis] != std::max(x[axis], y[axis]))
      fail(node.op, ": inputs ", node.in(0), " and ", node.in(1), ", output ", node.out(0),
           ", wanted sizes that are equal or 1");
}

Walk<2> walkOf(const Node& node) {
  const auto z = sizesOf(node.out(0));
  const auto axis = [&](size_t a) {
    const auto step = [&](const Shape& s) { return sizesOf(s)[a] == 1 ? 0 : stepsOf(s)[a]; };
    return Walk<2>::Axis{z[a], {step(node.in(0)), step(node.in(1))}};
  };
  return Walk<2>({axis(0), axis(1), axis(2), axis(3), axis(4)});
}

double exact(Binary op, double x, double y) {
  return op == Binary::add ? x + y : op == Binary::sub ? x - y : op == Binary::mul ? x * y : x / y;
}

Kernel slow(const Node& node, int) {
  return {[=, op = operationOf(node), walk = walkOf(node)](Run& run) {
    for (int64_t row = 0; row < walk.rows(); row++) {
      const auto from = walk.at(row);
      for (int64_t i = 0; i < walk.inner.size; i++) {
        const auto number = [&](size_t k) {
          return valueAt(run.inputs[k], node.inputs[k], from[k] + i * walk.inner.steps[k]);
        };
        setValue(run.outputs[0], node.outputs[0], row * walk.inner.size + i,
                 static_cast<float>(exact(op, number(0), number(1))));
      }
    }
  }};
}

Kernel fast(const Node& node, int) {
  const Floats x(node.inputs[0]), y(node.inputs[1]), z(node.outputs[0]);
  return {[=, op = operationOf(node), walk = walkOf(node), loop = OCTCONV_PICK(combine)](Run& run) {
            const auto [xStep, yStep] = walk.inner.steps;
            eachTile(run, walk, [&](const auto& from, int64_t to, int64_t count, char* scratch) {
              auto* rooms = reinterpret_cast<float*>(scratch);
              const float* a = x.read(run.inputs[0], from[0], xStep ? count : 1, rooms);
              const float* b = y.read(run.inputs[1], from[1], yStep ? count : 1, rooms + tileElements);
              loop(op, a, xStep, b, yStep, z.target(run.outputs[0], to, rooms), count);
              z.write(run.outputs[0], to, count, rooms);
            });
          },
          0, 2 * tileElements * sizeof(float)};
}

const bool registered = [] {
  for (const auto& [name, op] : names) {
    Registered<Contract>(name, {check, false, true});
    Registered<Kernels<Reference>>(name, {slow, anyElements});
    Registered<Kernels<Cpu>>(name, {fast, anyFloats});
  }
  return true;
}();

}  // namespace
}  // namespace octconv
#endif
