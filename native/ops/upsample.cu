// upsampleNearest on NVIDIA GPUs, see upsample.cc.
#include "../cuda/items.h"
#include "../cuda/tensor.h"
#include "../cuda/units.h"

namespace octconv::cuda {
namespace {

struct UpsampleArgs {
  TensorArgs x, y;
  int n;
  Extent scale;
  int unit, units;  // bytes, of a pixel
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(itemThreads)
    upsampleNearest(const __grid_constant__ UpsampleArgs a, char* arena) {
  const int64_t i = itemIndex(), pixel = i / a.units;
  const Pixel to = pixelAt(static_cast<unsigned>(pixel), a.n, a.y.size);
  if (to.frame < 0) return;
  const int n = to.frame / a.y.size.t, t = (to.frame - n * a.y.size.t) / a.scale.t;
  const int64_t row = static_cast<int64_t>(n * a.x.size.t + t) * a.x.size.h + to.y / a.scale.h;
  const int64_t from = (row * a.x.size.w + to.x / a.scale.w) * a.units + (i - pixel * a.units);
  byUnit(a.unit, [&](auto unit) {
    using Unit = decltype(unit);
    reinterpret_cast<Unit*>(arena + a.y.at)[i] = reinterpret_cast<const Unit*>(arena + a.x.at)[from];
  });
}

}  // namespace octconv::cuda

#else
namespace octconv::cuda {
namespace {

Made make(const PlacedNode& placed) {
  const Node& node = placed.node;
  const int64_t bytes = node.out(0).c * static_cast<int64_t>(bytesOf(node.outputs[0].dtype));
  UpsampleArgs args{placed.input(0),
                    placed.output(0),
                    intOf(node.in(0).n, "images"),
                    extentOf(Size3(node.attrs["scale"])),
                    unitOf({bytes}),
                    0};
  args.units = static_cast<int>(bytes / args.unit);
  return {{launchItems("upsampleNearest", product(node.out(0).pixels(), args.units), args)}, "upsampleNearest"};
}

const Registered<Kernels> kernels{"upsampleNearest", {make, elements}};

}  // namespace
}  // namespace octconv::cuda
#endif
