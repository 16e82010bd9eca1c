// upsampleNearest: every position `scale` [t,h,w] times; the output may be cropped by less than one scale, which undoes
// a pooling that rounded up. f32, f16, bf16 or u8; only moves data, the same for every device.
#include <algorithm>

#include "../cpu/floats.h"

namespace octconv {
namespace {

void check(const Node& node) {
  node.want(1, 1);
  const Size3 scale(node.attrs["scale"]);
  const Shape s = node.in(0), o = node.out(0);
  const auto fits = [](int64_t in, int64_t out, int64_t by) { return by > 0 && (out + by - 1) / by == in; };
  if (o.n != s.n || o.c != s.c || !fits(s.t, o.t, scale.t) || !fits(s.h, o.h, scale.h) || !fits(s.w, o.w, scale.w))
    fail("upsampleNearest: output ", o, " of input ", s, " does not fit the scale");
}

Kernel make(const Node& node, int) {
  const Size3 scale(node.attrs["scale"]);
  const Shape s = node.in(0), o = node.out(0);
  const int64_t pixel = s.c * static_cast<int64_t>(bytesOf(node.outputs[0].dtype));
  return {[=](Run& run) {
    run.parallel(o.rows(), [&](int64_t row, char*) {
      const int64_t n = row / (o.t * o.h), t = row / o.h % o.t / scale.t, y = row % o.h / scale.h;
      const char* from = run.in<char>(0) + ((n * s.t + t) * s.h + y) * s.w * pixel;
      char* to = run.out<char>(0) + row * o.w * pixel;
      for (int64_t x = 0; x < o.w; x++) to = std::copy_n(from + x / scale.w * pixel, pixel, to);
    });
  }};
}

const Registered<Contract> contract{"upsampleNearest", {check}};
const Registered<Kernels<Reference>> onReference{"upsampleNearest", {make, anyElements}};
const Registered<Kernels<Cpu>> onCpu{"upsampleNearest", {make, anyElements}};

}  // namespace
}  // namespace octconv
