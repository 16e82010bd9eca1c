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

#include "../cpu/kernel.h"

namespace octconv {

static void check(const Node& node) {
  node.want(1, 1);
  if (node.in(0) != node.out(0))
    fail(node.op, ": input ", node.in(0), " and output ", node.out(0), " must have one shape");
}

static float mostOf(const Node& node) { return node.op == "relu6" ? 6 : INFINITY; }

// A NaN is neither below 0 nor above `most`.
static Kernel slowClamp(const Node& node, int) {
  const int64_t count = node.in(0).elements();
  return {[=, most = mostOf(node)](Run& run) {
    const float* x = run.in<float>(0);
    float* y = run.out<float>(0);
    for (int64_t i = 0; i < count; i++) y[i] = x[i] < 0 ? 0 : x[i] > most ? most : x[i];
  }};
}

static Kernel fastClamp(const Node& node, int) {
  const int64_t count = node.in(0).elements();
  const int64_t parts = pieces(count, 1 << 16);
  return {[=, most = mostOf(node), fast = OCTCONV_PICK(clampAll)](Run& run) {
    run.parallel(parts, [&](int64_t task, char*) {
      const auto [begin, end] = piece(count, parts, task);
      fast(run.in<float>(0) + begin, run.out<float>(0) + begin, end - begin, 0, most);
    });
  }};
}

// One loop for both devices: exp dominates, and no network of the paper has a large sigmoid.
static Kernel sigmoid(const Node& node, int) {
  const int64_t count = node.in(0).elements(), parts = pieces(count, 1 << 12);
  return {[=](Run& run) {
    run.parallel(parts, [&](int64_t task, char*) {
      const auto [begin, end] = piece(count, parts, task);
      for (int64_t i = begin; i < end; i++) run.out<float>(0)[i] = 1 / (1 + std::exp(-run.in<float>(0)[i]));
    });
  }};
}

static const Registered<Contract> contracts[] = {{"relu", {check}}, {"relu6", {check}}, {"sigmoid", {check}}};
static const Registered<Kernels<Reference>> slow[] = {
    {"relu", {slowClamp}}, {"relu6", {slowClamp}}, {"sigmoid", {sigmoid}}};
static const Registered<Kernels<Cpu>> fast[] = {
    {"relu", {fastClamp}}, {"relu6", {fastClamp}}, {"sigmoid", {sigmoid}}};

}  // namespace octconv
#endif
