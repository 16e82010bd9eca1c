// relu, relu6, sigmoid: elementwise on any shape, f32 in and out. NaN stays NaN.
#include "../cpu/levels.h"
#include "../cpu/vec.h"

OCTCONV_DECLARE(void clampAll(const float* x, float* y, ptrdiff_t count, float low, float high))

namespace octconv::OCTCONV_LEVEL {

void clampAll(const float* x, float* y, ptrdiff_t count, float low, float high) {
  const Vec lowest = splat(low), highest = splat(high);
  ptrdiff_t i = 0;
  for (; i + lanes <= count; i += lanes) store(y + i, clamp(load(x + i), lowest, highest));
  if (i < count)
    store(y + i, clamp(load(x + i, static_cast<int>(count - i)), lowest, highest), static_cast<int>(count - i));
}

}  // namespace octconv::OCTCONV_LEVEL

#if OCTCONV_MAIN
#include <cmath>

#include "../core/op.h"

namespace octconv {

static void check(const Node& node) {
  node.want(1, 1);
  node.wantF32();
  if (node.in(0) != node.out(0))
    fail(node.op, ": input ", node.in(0), " and output ", node.out(0), " must have one shape");
}

// low and high as in clamp; a NaN is neither below nor above.
static Kernel clampKernel(const Node& node, Device device, float low, float high) {
  check(node);
  const int64_t count = node.in(0).elements();
  if (device == Device::reference)
    return {[=](Run& run) {
      const float* x = run.in<float>(0);
      float* y = run.out<float>(0);
      for (int64_t i = 0; i < count; i++) y[i] = x[i] < low ? low : x[i] > high ? high : x[i];
    }};
  const int64_t parts = pieces(count, 1 << 16);
  return {[=, fast = OCTCONV_PICK(clampAll)](Run& run) {
    run.parallel(parts, [&](int64_t task, char*) {
      const auto [begin, end] = piece(count, parts, task);
      fast(run.in<float>(0) + begin, run.out<float>(0) + begin, end - begin, low, high);
    });
  }};
}

static Kernel relu(const Node& node, Device device) { return clampKernel(node, device, 0, INFINITY); }
static Kernel relu6(const Node& node, Device device) { return clampKernel(node, device, 0, 6); }

// One loop for both devices: exp dominates, and no network of the paper has a large sigmoid.
static Kernel sigmoid(const Node& node, Device) {
  check(node);
  const int64_t count = node.in(0).elements(), parts = pieces(count, 1 << 12);
  return {[=](Run& run) {
    run.parallel(parts, [&](int64_t task, char*) {
      const auto [begin, end] = piece(count, parts, task);
      for (int64_t i = begin; i < end; i++) run.out<float>(0)[i] = 1 / (1 + std::exp(-run.in<float>(0)[i]));
    });
  }};
}

static const Register ops[] = {{"relu", relu}, {"relu6", relu6}, {"sigmoid", sigmoid}};

}  // namespace octconv
#endif
