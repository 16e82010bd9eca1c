// pad: `before` and `after` [t,h,w] more positions of `value`. f32, f16, bf16 or u8; only moves data, the same for
// every device.
#include <algorithm>

#include "../cpu/floats.h"

namespace octconv {
namespace {

void check(const Node& node) {
  node.want(1, 1);
  const Size3 before(node.attrs["before"]), after(node.attrs["after"]);
  const Shape s = node.in(0), o = node.out(0);
  for (const Size3& size : {before, after})
    if (size.t < 0 || size.h < 0 || size.w < 0) fail("pad: sizes must not be negative");
  if (const Shape wanted{s.n, s.t + before.t + after.t, s.h + before.h + after.h, s.w + before.w + after.w, s.c};
      o != wanted)
    fail("pad: output ", o, " of input ", s, ", wanted ", wanted);
}

Kernel make(const Node& node, int) {
  const Size3 before(node.attrs["before"]), after(node.attrs["after"]);
  const Shape s = node.in(0), o = node.out(0);
  uint32_t bits = 0;
  setValue(&bits, node.outputs[0], 0, static_cast<float>(node.attrs.number("value", 0)));
  return {[=, dtype = node.outputs[0].dtype](Run& run) {
    run.parallel(o.rows(), [&](int64_t row, char*) {
      const int64_t n = row / (o.t * o.h), t = row / o.h % o.t - before.t, y = row % o.h - before.h;
      bySize(dtype, [&](auto element) {
        using Element = decltype(element);
        const auto value = static_cast<Element>(bits);
        Element* to = run.out<Element>(0) + row * o.w * o.c;
        if (t < 0 || t >= s.t || y < 0 || y >= s.h) {
          std::fill_n(to, o.w * o.c, value);
          return;
        }
        to = std::fill_n(to, before.w * o.c, value);
        to = std::copy_n(run.in<Element>(0) + ((n * s.t + t) * s.h + y) * s.w * s.c, s.w * s.c, to);
        std::fill_n(to, after.w * o.c, value);
      });
    });
  }};
}

const Registered<Contract> contract{"pad", {check}};
const Registered<Kernels<Reference>> onReference{"pad", {make, anyElements}};
const Registered<Kernels<Cpu>> onCpu{"pad", {make, anyElements}};

}  // namespace
}  // namespace octconv
