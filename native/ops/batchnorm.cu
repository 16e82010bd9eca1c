// batchNorm on NVIDIA GPUs, see batchnorm.cc.
#include "../cuda/items.h"
#include "../cuda/tensor.h"

namespace octconv::cuda {
namespace {

struct BatchNormArgs {
  TensorArgs x, y;
  int64_t elements;
  const float *scale, *shift;
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(itemThreads) batchNorm(const __grid_constant__ BatchNormArgs a, char* arena) {
  const int64_t i = itemIndex();
  if (i >= a.elements) return;
  const int64_t pixel = i / a.x.channels, channel = i - pixel * a.x.channels;
  const float x = elementOf(arena, a.x, pixel * a.x.pitch + channel);
  setElement(arena, a.y, pixel * a.y.pitch + channel, x * a.scale[channel] + a.shift[channel]);
}

}  // namespace octconv::cuda

#else
#include "batchnorm.h"

namespace octconv::cuda {
namespace {

struct CudaScaleShift : Packed {
  int64_t channels;
  Block memory;
  size_t bytes() const override { return memory.size(); }
};

std::shared_ptr<const Packed> pack(Gpu& gpu, const Attr& attrs, const Params& params, Crew&) {
  const NormFactors factors = normFactorsOf(attrs, params);
  auto packed = std::make_shared<CudaScaleShift>();
  packed->channels = static_cast<int64_t>(factors.scale.size());
  const Block pinned(gpu, factors.scale.size() * 2 * sizeof(float), Block::Where::pinned);
  auto* to = reinterpret_cast<float*>(pinned.host());
  for (const auto* values : {&factors.scale, &factors.shift})
    for (const double value : *values) *to++ = static_cast<float>(value);
  packed->memory = uploaded(gpu, pinned);
  return packed;
}

Made make(const PlacedNode& placed) {
  const Shape& s = placed.node.in(0);
  const auto& packed = placed.node.weights<CudaScaleShift>();
  if (packed.channels != s.c) fail("batchNorm: ", packed.channels, " parameters for the ", s.c, " channels of ", s);
  const auto* scale = reinterpret_cast<const float*>(packed.memory.device());
  const BatchNormArgs args{placed.input(0), placed.output(0), s.elements(), scale, scale + s.c};
  return {{launchItems("batchNorm", args.elements, args)}, "batchNorm"};
}

const Registered<Kernels> kernels{"batchNorm", {make, floats, pack, normFormatOf, true}};

}  // namespace
}  // namespace octconv::cuda
#endif
