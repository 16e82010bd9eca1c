// maxPool and avgPool on NVIDIA GPUs, for the contract in pool.cc: a thread computes one channel of an output pixel, or
// with P of it as second output of the four pixels that P is the mean of. Bound by memory.
#include "../cuda/items.h"
#include "../cuda/tensor.h"

namespace octconv::cuda {
namespace {

struct PoolArgs {
  TensorArgs x, y, half;  // half: P(y)
  int n;
  Extent kernel, stride, padding;
  bool average, countIncludePad, halves;
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
#include "../cuda/sums.h"

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
  float largest = floatOfBits(0xff800000);  // minus infinity
  LongSum sum;
  int count = 0;
#pragma unroll 1
  for (int ti = atLeast(t, 0); ti < atMost(tEnd, a.x.size.t); ti++)
#pragma unroll 1
    for (int yi = atLeast(y, 0); yi < atMost(yEnd, a.x.size.h); yi++)
#pragma unroll 1
      for (int xi = atLeast(x, 0); xi < atMost(xEnd, a.x.size.w); xi++, count++) {
        const float value = elementOf(arena, a.x, elementAt(a.x, {n * a.x.size.t + ti, yi, xi}, channel));
        if (a.average) {
          sum.add(value);
        } else if (value > largest || value != value) {
          largest = value;  // a NaN stays: nothing is larger
        }
      }
  if (!a.average) return largest;
  if (a.countIncludePad) count = int64_t{tEnd - t} * (yEnd - y) * (xEnd - x);
  return static_cast<float>(sum.total()) / static_cast<float>(count);
}

}  // namespace

// With 8 blocks wanted nvcc takes more registers; left to itself it keeps some values in local memory.
OCTCONV_KERNEL void __launch_bounds__(itemThreads, 8) pool(const __grid_constant__ PoolArgs a, char* arena) {
  const int64_t item = itemIndex();
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
      sum += roundedTo(a.y.dtype, value);
    }
  setElement(arena, a.half, elementAt(a.half, low, channel), sum / count);
}

}  // namespace octconv::cuda

#else
namespace octconv::cuda {
namespace {

Made make(const PlacedNode& placed) {
  const Node& node = placed.node;
  const Attr& a = node.attrs;
  PoolArgs args{placed.input(0),
                placed.output(0),
                {},
                intOf(node.in(0).n, "images"),
                extentOf(Size3(a["kernel"])),
                extentOf(Size3(a["stride"])),
                extentOf(Size3(a["padding"])),
                node.op == "avgPool",
                a.flag("countIncludePad"),
                node.outputs.size() > 1};
  if (args.halves) args.half = placed.output(1);
  const int64_t items = node.out(args.halves ? 1 : 0).elements();
  return {{launchItems("pool", items, args)}, "pool"};
}

const Registered<Kernels> kernels[] = {{"maxPool", {make, floats, nullptr, nullptr, true}},
                                       {"avgPool", {make, floats, nullptr, nullptr, true}}};

}  // namespace
}  // namespace octconv::cuda
#endif
