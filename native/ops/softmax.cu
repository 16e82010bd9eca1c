// softmax on NVIDIA GPUs: a block computes four rows along the axis, each by 32 threads. Sums in double, always in the
// same order; a NaN makes its row NaN.
#include "../cuda/tensor.h"

namespace octconv::cuda {
namespace {

constexpr int softmaxThreads = 128, softmaxLanes = 32;  // of a block, of a row

struct SoftmaxArgs {
  int64_t x, y;        // bytes from the arena's begin
  int64_t rows, step;  // step: elements along the axis are so many apart
  int size;            // of the axis
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
#include <math.h>

namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(softmaxThreads) softmax(const __grid_constant__ SoftmaxArgs a, char* arena) {
  const int lane = threadIndex() % softmaxLanes, first = threadIndex() - lane;
  const int64_t row = static_cast<int64_t>(blockIndex()) * (softmaxThreads / softmaxLanes) + first / softmaxLanes;
  const int size = row < a.rows ? a.size : 0;  // all threads come to synchronize
  const int64_t begin = row / a.step * a.size * a.step + row % a.step;
  const float* const x = reinterpret_cast<const float*>(arena + a.x) + begin;
  float* const y = reinterpret_cast<float*>(arena + a.y) + begin;
  auto* const sums = reinterpret_cast<double*>(sharedMemory());
  auto* const most = reinterpret_cast<float*>(sums + softmaxThreads);

  float largest = floatOfBits(0xff800000);  // minus infinity
  for (int i = lane; i < size; i += softmaxLanes) largest = x[i * a.step] > largest ? x[i * a.step] : largest;
  most[threadIndex()] = largest;
  synchronize();
  for (int i = 0; i < softmaxLanes; i++) largest = most[first + i] > largest ? most[first + i] : largest;

  double sum = 0;
  for (int i = lane; i < size; i += softmaxLanes) sum += static_cast<double>(expf(x[i * a.step] - largest));
  sums[threadIndex()] = sum;
  synchronize();
  sum = 0;
  for (int i = 0; i < softmaxLanes; i++) sum += sums[first + i];
  const auto all = static_cast<float>(sum);
  for (int i = lane; i < size; i += softmaxLanes) y[i * a.step] = expf(x[i * a.step] - largest) / all;
}

}  // namespace octconv::cuda

#else
#include "../core/walk.h"
#include "../cuda/kernel.h"

namespace octconv::cuda {
namespace {

Made make(const PlacedNode& placed) {
  const Shape& s = placed.node.in(0);
  const auto axis = static_cast<size_t>(placed.node.attrs.integer("axis", 4));
  const int64_t size = sizesOf(s)[axis], rows = s.elements() / size;
  constexpr int64_t together = softmaxThreads / softmaxLanes;
  const SoftmaxArgs args{placed.inputs[0], placed.outputs[0], rows, stepsOf(s)[axis], intOf(size, "elements")};
  const int blocks = intOf((rows + together - 1) / together, "blocks");
  return {{launchOf("softmax", static_cast<unsigned>(blocks), softmaxThreads,
                    softmaxThreads * (sizeof(double) + sizeof(float)), args)},
          "softmax"};
}

const Registered<Kernels> kernels{"softmax", {make}};

}  // namespace
}  // namespace octconv::cuda
#endif
