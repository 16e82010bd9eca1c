// Means over some axes, as a launch: of mean and globalAvgPool, and of stores of convolutions. The kernel is in
// native/ops/mean.cu.
#pragma once
#include "tensor.h"
#include "walk.h"

namespace octconv::cuda {

struct MeansArgs {
  TensorArgs x;
  int64_t y;               // f32, bytes from the arena's begin
  WalkArgs<1> left, over;  // through x: positions of results, what each is the mean of
  int channels, lanes;     // of a position, 1 if it is a mean over channels; of these of a block
};
inline constexpr int meansThreads = 128;  // of a block

}  // namespace octconv::cuda

#if !OCTCONV_KERNELS
#include "kernel.h"

namespace octconv::cuda {
// `over` says of N, T, H, W and C which.
Launch meansOf(const TensorType& type, int64_t x, int64_t y,
               const std::array<bool, 5>& over = {false, true, true, true, false});
}  // namespace octconv::cuda
#endif
