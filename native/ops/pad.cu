// pad on NVIDIA GPUs, see pad.cc.
#include "../cuda/items.h"
#include "../cuda/tensor.h"
#include "../cuda/units.h"

namespace octconv::cuda {
namespace {

struct PadArgs {
  TensorArgs x, y;
  int n;
  Extent before;
  int unit, units;                // bytes, of a pixel
  alignas(16) uint32_t value[4];  // as often as it fits
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(itemThreads) pad(const __grid_constant__ PadArgs a, char* arena) {
  const int64_t i = itemIndex(), pixel = i / a.units;
  const Pixel to = pixelAt(static_cast<unsigned>(pixel), a.n, a.y.size);
  if (to.frame < 0) return;
  const int n = to.frame / a.y.size.t, t = to.frame - n * a.y.size.t - a.before.t;
  const int y = to.y - a.before.h, x = to.x - a.before.w;
  const bool inside = t >= 0 && t < a.x.size.t && y >= 0 && y < a.x.size.h && x >= 0 && x < a.x.size.w;
  const int64_t row = static_cast<int64_t>(n * a.x.size.t + t) * a.x.size.h + y;
  const int64_t from = (row * a.x.size.w + x) * a.units + (i - pixel * a.units);
  byUnit(a.unit, [&](auto unit) {
    using Unit = decltype(unit);
    const char* const source = inside ? arena + a.x.at : reinterpret_cast<const char*>(a.value);
    reinterpret_cast<Unit*>(arena + a.y.at)[i] = reinterpret_cast<const Unit*>(source)[inside ? from : 0];
  });
}

}  // namespace octconv::cuda

#else
namespace octconv::cuda {
namespace {

Made make(const PlacedNode& placed) {
  const Node& node = placed.node;
  const TensorType& type = node.outputs[0];
  const auto bytes = static_cast<int64_t>(bytesOf(type.dtype)), pixel = node.out(0).c * bytes;
  PadArgs args{placed.input(0),
               placed.output(0),
               intOf(node.in(0).n, "images"),
               extentOf(Size3(node.attrs["before"])),
               unitOf({pixel}),
               0,
               {}};
  args.units = static_cast<int>(pixel / args.unit);
  for (int64_t i = 0; i < 16 / bytes; i++)
    setValue(args.value, {type.dtype, {}, type.scale, type.zero}, i, static_cast<float>(node.attrs.number("value", 0)));
  return {{launchItems("pad", product(node.out(0).pixels(), args.units), args)}, "pad"};
}

const Registered<Kernels> kernels{"pad", {make, elements}};

}  // namespace
}  // namespace octconv::cuda
#endif
