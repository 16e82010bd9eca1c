// interpolate: bilinear over H and W of [N,T,H,W,C], without antialiasing, as PyTorch's interpolate with
// align_corners=False: output pixel i lies at (i + 0.5) * from / to - 0.5 of the input, not below 0. f32.
#include "../cpu/levels.h"
#include "../cpu/vec.h"

// y = top * (left * a + right * b) + down * (left * c + right * d) of some channels.
OCTCONV_DECLARE(void blend(const float* const corners[4], float left, float right, float top, float down, float* y,
                           ptrdiff_t channels))

namespace octconv::OCTCONV_LEVEL {

void blend(const float* const corners[4], float left, float right, float top, float down, float* y,
           ptrdiff_t channels) {
  for (ptrdiff_t i = 0; i < channels; i += lanes) {
    const int count = channels - i < lanes ? static_cast<int>(channels - i) : lanes;
    const auto at = [&](int k) { return count == lanes ? load(corners[k] + i) : load(corners[k] + i, count); };
    const Vec sum = (at(0) * splat(left) + at(1) * splat(right)) * splat(top) +
                    (at(2) * splat(left) + at(3) * splat(right)) * splat(down);
    count == lanes ? store(y + i, sum) : store(y + i, sum, count);
  }
}

}  // namespace octconv::OCTCONV_LEVEL

#if OCTCONV_MAIN
#include "../cpu/kernel.h"

namespace octconv {
namespace {

// Between which two pixels of an axis an output pixel lies, and how much each counts.
struct Between {
  int64_t first, second;
  double before, after;
  Between(int64_t i, int64_t from, int64_t to) {
    const double place =
        std::max(0.0, (static_cast<double>(i) + 0.5) * static_cast<double>(from) / static_cast<double>(to) - 0.5);
    first = std::min(static_cast<int64_t>(place), from - 1);
    second = std::min(first + 1, from - 1);
    after = place - static_cast<double>(first), before = 1 - after;
  }
};

void check(const Node& node) {
  node.want(1, 1);
  const Shape x = node.in(0), y = node.out(0);
  if (x.n != y.n || x.t != y.t || x.c != y.c)
    fail("interpolate: ", x, " to ", y, ", wanted [N,T,H,W,C] to [N,T,h,w,C]");
}

Kernel slow(const Node& node, int) {
  const Shape x = node.in(0), y = node.out(0);
  return {[=](Run& run) {
    for (int64_t i = 0; i < y.elements(); i++) {
      const int64_t c = i % y.c, plane = i / (y.c * y.w * y.h);
      const Between h(i / (y.c * y.w) % y.h, x.h, y.h), w(i / y.c % y.w, x.w, y.w);
      const auto at = [&](int64_t row, int64_t column) -> double {
        return run.in<float>(0)[((plane * x.h + row) * x.w + column) * x.c + c];
      };
      const double top = at(h.first, w.first) * w.before + at(h.first, w.second) * w.after;
      const double down = at(h.second, w.first) * w.before + at(h.second, w.second) * w.after;
      run.out<float>(0)[i] = static_cast<float>(top * h.before + down * h.after);
    }
  }};
}

Kernel fast(const Node& node, int) {
  const Shape x = node.in(0), y = node.out(0);
  std::vector<Between> columns;
  for (int64_t i = 0; i < y.w; i++) columns.emplace_back(i, x.w, y.w);
  return {[=, columns = std::move(columns), loop = OCTCONV_PICK(blend)](Run& run) {
    run.parallel(y.rows(), [&](int64_t row, char*) {
      const Between h(row % y.h, x.h, y.h);
      const float* top = run.in<float>(0) + (row / y.h * x.h + h.first) * x.w * x.c;
      const float* down = top + (h.second - h.first) * x.w * x.c;
      float* to = run.out<float>(0) + row * y.w * y.c;
      for (const Between& w : columns) {
        const float* const corners[] = {top + w.first * x.c, top + w.second * x.c, down + w.first * x.c,
                                        down + w.second * x.c};
        loop(corners, static_cast<float>(w.before), static_cast<float>(w.after), static_cast<float>(h.before),
             static_cast<float>(h.after), to, y.c);
        to += y.c;
      }
    });
  }};
}

const Registered<Contract> contract{"interpolate", {check}};
const Registered<Kernels<Reference>> onReference{"interpolate", {slow}};
const Registered<Kernels<Cpu>> onCpu{"interpolate", {fast}};

}  // namespace
}  // namespace octconv
#endif
