// globalAvgPool on NVIDIA GPUs. A block computes 32 channels of an image: each thread adds up every fourth pixel, then
// four sums become one; always in the same order.
#include "../cuda/means.h"

#if OCTCONV_KERNELS
namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(meansThreads) means(const __grid_constant__ MeansArgs a, char* arena) {
  constexpr int together = meansThreads / meansChannels;
  const int parts = (a.x.channels + meansChannels - 1) / meansChannels, image = blockIndex() / parts;
  const int channel = blockIndex() % parts * meansChannels + threadIndex() % meansChannels;
  const int pixels = a.x.size.t * a.x.size.h * a.x.size.w;
  float sum = 0;
  if (channel < a.x.channels)
    for (int p = threadIndex() / meansChannels; p < pixels; p += together)
      sum += elementOf(arena, a.x, (static_cast<int64_t>(image) * pixels + p) * a.x.pitch + channel);
  auto* const sums = reinterpret_cast<float*>(sharedMemory());
  sums[threadIndex()] = sum;
  synchronize();
  if (threadIndex() >= meansChannels || channel >= a.x.channels) return;
  for (int i = 1; i < together; i++) sum += sums[i * meansChannels + threadIndex()];
  reinterpret_cast<float*>(arena + a.y)[static_cast<int64_t>(image) * a.x.channels + channel] =
      sum / static_cast<float>(pixels);
}

}  // namespace octconv::cuda

#else
#include "../cuda/kernel.h"

namespace octconv::cuda {

Launch meansOf(const TensorType& type, int64_t x, int64_t y) {
  const int64_t blocks = product(type.shape.n, (type.shape.c + meansChannels - 1) / meansChannels);
  return launchOf("means", static_cast<unsigned>(intOf(blocks, "blocks")), meansThreads, meansThreads * sizeof(float),
                  MeansArgs{tensorOf(type, x), y});
}

namespace {

Made make(const PlacedNode& placed) {
  return {{meansOf(placed.node.inputs[0], placed.inputs[0], placed.outputs[0])}, "means"};
}

const Registered<Kernels> kernels{"globalAvgPool", {make, {DType::f32, DType::bf16}, nullptr, nullptr, true}};

}  // namespace
}  // namespace octconv::cuda
#endif
