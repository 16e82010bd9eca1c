// softmax on NVIDIA GPUs: a block computes four pixels, each by 32 threads. Sums in double, always in the same order; a
// NaN makes its pixel NaN.
#include "../cuda/tensor.h"

namespace octconv::cuda {
namespace {

constexpr int softmaxThreads = 128, softmaxLanes = 32;  // of a block, of a pixel

struct SoftmaxArgs {
  int64_t x, y;  // bytes from the arena's begin
  int64_t pixels;
  int channels;
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
#include <math.h>

namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(softmaxThreads) softmax(const __grid_constant__ SoftmaxArgs a, char* arena) {
  const int lane = threadIndex() % softmaxLanes, row = threadIndex() - lane;
  const int64_t pixel = static_cast<int64_t>(blockIndex()) * (softmaxThreads / softmaxLanes) + row / softmaxLanes;
  const int channels = pixel < a.pixels ? a.channels : 0;  // all threads come to synchronize
  const float* const x = reinterpret_cast<const float*>(arena + a.x) + pixel * a.channels;
  float* const y = reinterpret_cast<float*>(arena + a.y) + pixel * a.channels;
  auto* const sums = reinterpret_cast<double*>(sharedMemory());
  auto* const most = reinterpret_cast<float*>(sums + softmaxThreads);

  float largest = floatOfBits(0xff800000);  // minus infinity
  for (int c = lane; c < channels; c += softmaxLanes) largest = x[c] > largest ? x[c] : largest;
  most[threadIndex()] = largest;
  synchronize();
  for (int i = 0; i < softmaxLanes; i++) largest = most[row + i] > largest ? most[row + i] : largest;

  double sum = 0;
  for (int c = lane; c < channels; c += softmaxLanes) sum += static_cast<double>(expf(x[c] - largest));
  sums[threadIndex()] = sum;
  synchronize();
  sum = 0;
  for (int i = 0; i < softmaxLanes; i++) sum += sums[row + i];
  const auto all = static_cast<float>(sum);
  for (int c = lane; c < channels; c += softmaxLanes) y[c] = expf(x[c] - largest) / all;
}

}  // namespace octconv::cuda

#else
#include "../cuda/kernel.h"

namespace octconv::cuda {
namespace {

Made make(const PlacedNode& placed) {
  const Shape& s = placed.node.in(0);
  constexpr int64_t together = softmaxThreads / softmaxLanes;
  const SoftmaxArgs args{placed.inputs[0], placed.outputs[0], s.pixels(), intOf(s.c, "channels")};
  const int blocks = intOf((s.pixels() + together - 1) / together, "blocks");
  return {{launchOf("softmax", static_cast<unsigned>(blocks), softmaxThreads,
                    softmaxThreads * (sizeof(double) + sizeof(float)), args)},
          "softmax"};
}

const Registered<Kernels> kernels{"softmax", {make}};

}  // namespace
}  // namespace octconv::cuda
#endif
