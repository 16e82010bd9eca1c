// maxPool and avgPool on NVIDIA GPUs, for the contract in pool.cc: a thread computes one channel of an output pixel, or
// with P of it as second output of the four pixels that P is the mean of. Bound by memory.
#include "../cuda/tensor.h"

namespace octconv::cuda {
namespace {

constexpr int threads = 128;

struct PoolArgs {
  TensorArgs x, y, half;  // half: P(y)
  int n;
  Extent kernel, stride, padding;
  bool average, countIncludePad, halves;
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
namespace octconv::cuda {
namespace {

OCTCONV_DEVICE int atLeast(int x, int least) { return x < least ? least : x; }
OCTCONV_DEVICE int atMost(int x, int most) { return x > most ? most : x; }

OCTCONV_DEVICE float windowAt(const PoolArgs& a, const char* arena, const Pixel& p, int channel) {
  const int n = p.frame / a.y.size.t, t = (p.frame - n * a.y.size.t) * a.stride.t - a.padding.t,
            y = p.y * a.stride.h - a.padding.h, x = p.x * a.stride.w - a.padding.w;
  const int tEnd = atMost(t + a.kernel.t, a.x.size.t + a.padding.t),
            yEnd = atMost(y + a.kernel.h, a.x.size.h + a.padding.h),
            xEnd = atMost(x + a.kernel.w, a.x.size.w + a.padding.w);
  float result = a.average ? 0 : floatOfBits(0xff800000);  // minus infinity
  int count = 0;
  for (int ti = atLeast(t, 0); ti < atMost(tEnd, a.x.size.t); ti++)
    for (int yi = atLeast(y, 0); yi < atMost(yEnd, a.x.size.h); yi++)
      for (int xi = atLeast(x, 0); xi < atMost(xEnd, a.x.size.w); xi++, count++) {
        const float value = elementOf(arena, a.x, elementAt(a.x, {n * a.x.size.t + ti, yi, xi}, channel));
        if (a.average) {
          result += value;
        } else if (value > result || value != value) {
          result = value;  // a NaN stays: nothing is larger
        }
      }
  if (!a.average) return result;
  if (a.countIncludePad) count = (tEnd - t) * (yEnd - y) * (xEnd - x);
  return result / static_cast<float>(count);
}

}  // namespace

OCTCONV_KERNEL void __launch_bounds__(threads) pool(const __grid_constant__ PoolArgs a, char* arena) {
  const int64_t item = static_cast<int64_t>(blockIndex()) * threads + threadIndex();
  const auto pixel = static_cast<unsigned>(item / a.y.channels);
  const int channel = static_cast<int>(item % a.y.channels);
  if (!a.halves) {
    const Pixel p = pixelAt(pixel, a.n, a.y.size);
    if (p.frame >= 0) setElement(arena, a.y, elementAt(a.y, p, channel), windowAt(a, arena, p, channel));
    return;
  }
  const Pixel low = pixelAt(pixel, a.n, a.half.size);
  if (low.frame < 0) return;
  float sum = 0, count = 0;
  for (int y = low.y * 2; y < atMost(low.y * 2 + 2, a.y.size.h); y++)
    for (int x = low.x * 2; x < atMost(low.x * 2 + 2, a.y.size.w); x++, count++) {
      const Pixel p{low.frame, y, x};
      const float value = windowAt(a, arena, p, channel);
      setElement(arena, a.y, elementAt(a.y, p, channel), value);
      sum += roundedTo(a.y.narrow, value);
    }
  setElement(arena, a.half, elementAt(a.half, low, channel), sum / count);
}

}  // namespace octconv::cuda

#else
#include "../core/attrs.h"
#include "../cuda/kernel.h"

namespace octconv::cuda {
namespace {

Extent extentOf(const Attr& attr) {
  const Size3 size(attr);
  return {intOf(size.t, "frames"), intOf(size.h, "rows"), intOf(size.w, "columns")};
}

Made make(const PlacedNode& placed) {
  const Node& node = placed.node;
  const Attr& a = node.attrs;
  PoolArgs args{placed.input(0), placed.output(0), {}, intOf(node.in(0).n, "images"), extentOf(a["kernel"]),
                extentOf(a["stride"]), extentOf(a["padding"]), node.op == "avgPool", a.flag("countIncludePad"),
                node.outputs.size() > 1};
  if (args.halves) args.half = placed.output(1);
  const int64_t items = node.out(args.halves ? 1 : 0).elements();
  return {{launchOf("pool", static_cast<unsigned>(intOf((items + threads - 1) / threads, "blocks")), threads, 0, args)},
          "pool"};
}

const std::vector<DType> floats{DType::f32, DType::bf16};
const Registered<Kernels> kernels[] = {{"maxPool", {make, floats, nullptr, nullptr, true}},
                                       {"avgPool", {make, floats, nullptr, nullptr, true}}};

}  // namespace
}  // namespace octconv::cuda
#endif
