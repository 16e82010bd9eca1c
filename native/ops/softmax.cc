// softmax: exp(x - max) / sum along an axis of [N,T,H,W,C], 1 (T) to 4 (C, the default). f32, sums in double; a NaN
// makes its row NaN.
//
// One loop for both devices: exp dominates, and a network has one small softmax at its end, if any.
#include <algorithm>
#include <cmath>

#include "../core/walk.h"
#include "../cpu/kernel.h"

namespace octconv {
namespace {

int64_t axisOf(const Node& node) {
  const int64_t axis = node.attrs.integer("axis", 4);
  if (axis < 1 || axis > 4) fail("softmax: axis ", axis, ", wanted 1 to 4");
  return axis;
}

void check(const Node& node) {
  node.want(1, 1);
  axisOf(node);
  if (node.out(0) != node.in(0))
    fail("softmax: output ", node.out(0), " of input ", node.in(0), ", wanted the same shape");
}

// A row steps through the axis. Rows beside each other are taken together, so that memory is read in its order.
constexpr int64_t mostRows = 16;

Kernel softmax(const Node& node, int) {
  const Shape s = node.in(0);
  const int64_t size = sizesOf(s)[axisOf(node)], step = stepsOf(s)[axisOf(node)];
  const int64_t bands = (step + mostRows - 1) / mostRows, all = s.elements() / (size * step) * bands;
  const int64_t parts = pieces(all, 1 + (1 << 12) / (size * std::min(step, mostRows)));
  return {[=](Run& run) {
    run.parallel(parts, [&](int64_t task, char*) {
      const auto [begin, end] = piece(all, parts, task);
      for (int64_t band = begin; band < end; band++) {
        const auto [first, last] = piece(step, bands, band % bands);
        const int64_t at = band / bands * size * step + first, rows = last - first;
        const float* x = run.in<float>(0) + at;
        float* y = run.out<float>(0) + at;
        double largest[mostRows], sums[mostRows] = {};
        std::copy_n(x, rows, largest);
        const auto each = [&](auto&& f) {
          for (int64_t i = 0; i < size; i++)
            for (int64_t r = 0; r < rows; r++) f(x[i * step + r], r, y[i * step + r]);
        };
        each([&](float value, int64_t r, float&) { largest[r] = largest[r] < value ? value : largest[r]; });
        each([&](float value, int64_t r, float&) { sums[r] += std::exp(value - largest[r]); });
        each([&](float value, int64_t r, float& to) {
          to = static_cast<float>(std::exp(value - largest[r]) / sums[r]);
        });
      }
    });
  }};
}

const Registered<Contract> contract{"softmax", {check}};
const Registered<Kernels<Reference>> onReference{"softmax", {softmax}};
const Registered<Kernels<Cpu>> onCpu{"softmax", {softmax}};

}  // namespace
}  // namespace octconv
