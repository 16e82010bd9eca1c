// Ops that only move data, the same for every device: concat (along C), upsampleNearest (scale, cropped to `size`), pad (constant). f32.
#include <algorithm>
#include <cstring>

#include "../core/op.h"

namespace octconv {
namespace {

Kernel concat(const Node& node, Device) {
  node.want(std::max<size_t>(node.inputs.size(), 1), 1);
  node.wantF32();
  const Shape o = node.out(0);
  int64_t channels = 0;
  for (size_t i = 0; i < node.inputs.size(); i++) {
    Shape wanted = o;
    wanted.c = node.in(i).c;
    if (node.in(i) != wanted) fail("concat: input ", i, " is ", node.in(i), ", wanted ", wanted);
    channels += node.in(i).c;
  }
  if (channels != o.c) fail("concat: output ", o, " of inputs with ", channels, " channels");
  const int64_t parts = pieces(o.pixels(), 1 + (1 << 16) / o.c);
  return {[=](Run& run) {
    run.parallel(parts, [&](int64_t task, char*) {
      const auto [begin, end] = piece(o.pixels(), parts, task);
      float* to = run.out<float>(0) + begin * o.c;
      for (int64_t p = begin; p < end; p++)
        for (size_t i = 0; i < node.inputs.size(); i++) {
          const int64_t c = node.in(i).c;
          to = std::copy_n(run.in<float>(i) + p * c, c, to);
        }
    });
  }};
}

Kernel upsampleNearest(const Node& node, Device) {
  node.want(1, 1);
  node.wantF32();
  const Size3 scale(node.attrs["scale"]);
  const Shape s = node.in(0), o = node.out(0);
  const auto fits = [](int64_t in, int64_t out, int64_t by) { return by > 0 && (out + by - 1) / by == in; };
  if (o.n != s.n || o.c != s.c || !fits(s.t, o.t, scale.t) || !fits(s.h, o.h, scale.h) || !fits(s.w, o.w, scale.w))
    fail("upsampleNearest: output ", o, " of input ", s, " does not fit the scale");
  return {[=](Run& run) {
    run.parallel(o.rows(), [&](int64_t row, char*) {
      const int64_t n = row / (o.t * o.h), t = row / o.h % o.t / scale.t, y = row % o.h / scale.h;
      const float* from = run.in<float>(0) + ((n * s.t + t) * s.h + y) * s.w * s.c;
      float* to = run.out<float>(0) + row * o.w * o.c;
      for (int64_t x = 0; x < o.w; x++) to = std::copy_n(from + x / scale.w * s.c, s.c, to);
    });
  }};
}

Kernel pad(const Node& node, Device) {
  node.want(1, 1);
  node.wantF32();
  const Size3 before(node.attrs["before"]), after(node.attrs["after"]);
  const float value = static_cast<float>(node.attrs.number("value", 0));
  const Shape s = node.in(0), o = node.out(0);
  for (const Size3& size : {before, after})
    if (size.t < 0 || size.h < 0 || size.w < 0) fail("pad: sizes must not be negative");
  if (const Shape wanted{s.n, s.t + before.t + after.t, s.h + before.h + after.h, s.w + before.w + after.w, s.c}; o != wanted)
    fail("pad: output ", o, " of input ", s, ", wanted ", wanted);
  return {[=](Run& run) {
    run.parallel(o.rows(), [&](int64_t row, char*) {
      const int64_t n = row / (o.t * o.h), t = row / o.h % o.t - before.t, y = row % o.h - before.h;
      float* to = run.out<float>(0) + row * o.w * o.c;
      if (t < 0 || t >= s.t || y < 0 || y >= s.h) {
        std::fill_n(to, o.w * o.c, value);
        return;
      }
      to = std::fill_n(to, before.w * o.c, value);
      to = std::copy_n(run.in<float>(0) + ((n * s.t + t) * s.h + y) * s.w * s.c, s.w * s.c, to);
      std::fill_n(to, after.w * o.c, value);
    });
  }};
}

const Register ops[] = {{"concat", concat}, {"upsampleNearest", upsampleNearest}, {"pad", pad}};

}  // namespace
}  // namespace octconv
