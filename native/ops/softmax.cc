// softmax: exp(x - max) / sum over the channels of each pixel of [N,T,H,W,C]. f32, sums in double; a NaN makes its
// pixel NaN.
//
// One loop for both devices: exp dominates, and a network has one small softmax at its end, if any.
#include <algorithm>
#include <cmath>

#include "../cpu/kernel.h"

namespace octconv {
namespace {

void check(const Node& node) {
  node.want(1, 1);
  if (node.out(0) != node.in(0))
    fail("softmax: output ", node.out(0), " of input ", node.in(0), ", wanted the same shape");
}

Kernel softmax(const Node& node, int) {
  const Shape s = node.in(0);
  const int64_t parts = pieces(s.pixels(), 1 + (1 << 12) / s.c);
  return {[=](Run& run) {
    run.parallel(parts, [&](int64_t task, char*) {
      const auto [begin, end] = piece(s.pixels(), parts, task);
      for (int64_t p = begin; p < end; p++) {
        const float* x = run.in<float>(0) + p * s.c;
        float* y = run.out<float>(0) + p * s.c;
        const double largest = *std::max_element(x, x + s.c);
        double sum = 0;
        for (int64_t c = 0; c < s.c; c++) sum += std::exp(x[c] - largest);
        for (int64_t c = 0; c < s.c; c++) y[c] = static_cast<float>(std::exp(x[c] - largest) / sum);
      }
    });
  }};
}

const Registered<Contract> contract{"softmax", {check}};
const Registered<Kernels<Reference>> onReference{"softmax", {softmax}};
const Registered<Kernels<Cpu>> onCpu{"softmax", {softmax}};

}  // namespace
}  // namespace octconv
