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
#include "../core/op.h"

namespace octconv {
namespace {

using Loop = void (*)(const float*, const float*, float*, ptrdiff_t);

// By pieces of the whole, which end at pixels where y is a gate.
Kernel make(const Node& node, bool multiply, Loop loop) {
  node.want(2, 1);
  node.wantF32();
  const Shape x = node.in(0), y = node.in(1);
  const bool gate = multiply && y == Shape{x.n, 1, 1, 1, x.c} && y != x;
  if ((x != y && !gate) || node.out(0) != x)
    fail(node.op, ": inputs ", x, " and ", y, ", output ", node.out(0), ", wanted one shape");
  if (gate) {
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
Kernel add(const Node& node, Device device) {
  return make(node, false, device == Device::reference ? &baseline::addAll : OCTCONV_PICK(addAll));
}
Kernel mul(const Node& node, Device device) {
  return make(node, true, device == Device::reference ? &baseline::mulAll : OCTCONV_PICK(mulAll));
}

const Register ops[] = {{"add", add}, {"mul", mul}};

}  // namespace
}  // namespace octconv
#endif
