// add: x + y of one shape. mul: x * y of one shape, or y [N,1,1,1,C] for x [N,T,H,W,C] (the gate of
// squeeze-and-excitation). f32.
#include "../cpu/levels.h"
#include "../cpu/vec.h"

OCTCONV_DECLARE(void addAll(const float* x, const float* y, float* z, ptrdiff_t count))
OCTCONV_DECLARE(void mulAll(const float* x, const float* y, float* z, ptrdiff_t count))

namespace octconv::OCTCONV_LEVEL {

void addAll(const float* x, const float* y, float* z, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i++) z[i] = x[i] + y[i];
}

void mulAll(const float* x, const float* y, float* z, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i++) z[i] = x[i] * y[i];
}

}  // namespace octconv::OCTCONV_LEVEL

#if OCTCONV_MAIN
#include "../cpu/kernel.h"

namespace octconv {
namespace {

using Loop = void (*)(const float*, const float*, float*, ptrdiff_t);

bool isGate(const Node& node) {
  const Shape x = node.in(0), y = node.in(1);
  return node.op == "mul" && y == Shape{x.n, 1, 1, 1, x.c} && y != x;
}

void check(const Node& node) {
  node.want(2, 1);
  const Shape x = node.in(0), y = node.in(1);
  if ((x != y && !isGate(node)) || node.out(0) != x)
    fail(node.op, ": inputs ", x, " and ", y, ", output ", node.out(0), ", wanted one shape");
}

// By pieces of the whole, which end at pixels where y is a gate.
Kernel make(const Node& node, Loop loop) {
  const Shape x = node.in(0);
  if (isGate(node)) {
    const int64_t image = x.t * x.h * x.w, parts = pieces(x.pixels(), 1 + (1 << 16) / x.c);
    return {[=](Run& run) {
      run.parallel(parts, [&](int64_t task, char*) {
        const auto [begin, end] = piece(x.pixels(), parts, task);
        for (int64_t p = begin; p < end; p++)
          loop(run.in<float>(0) + p * x.c, run.in<float>(1) + p / image * x.c, run.out<float>(0) + p * x.c, x.c);
      });
    }};
  }
  const int64_t count = x.elements(), parts = pieces(count, 1 << 16);
  return {[=](Run& run) {
    run.parallel(parts, [&](int64_t task, char*) {
      const auto [begin, end] = piece(count, parts, task);
      loop(run.in<float>(0) + begin, run.in<float>(1) + begin, run.out<float>(0) + begin, end - begin);
    });
  }};
}

// The reference of one addition or product is the baseline's loop: there is nothing to order or round differently.
Kernel slowAdd(const Node& node, int) { return make(node, &baseline::addAll); }
Kernel slowMul(const Node& node, int) { return make(node, &baseline::mulAll); }
Kernel fastAdd(const Node& node, int) { return make(node, OCTCONV_PICK(addAll)); }
Kernel fastMul(const Node& node, int) { return make(node, OCTCONV_PICK(mulAll)); }

const Registered<Contract> contracts[] = {{"add", {check}}, {"mul", {check}}};
const Registered<Kernels<Reference>> slow[] = {{"add", {slowAdd}}, {"mul", {slowMul}}};
const Registered<Kernels<Cpu>> fast[] = {{"add", {fastAdd}}, {"mul", {fastMul}}};

}  // namespace
}  // namespace octconv
#endif
