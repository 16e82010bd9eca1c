// Means over T, H and W, as a launch: of globalAvgPool, and of stores of convolutions.
#pragma once
#include "tensor.h"

namespace octconv::cuda {

struct MeansArgs {
  TensorArgs x;
  int64_t y;  // [N, C] of f32, bytes from the arena's begin
};
inline constexpr int meansThreads = 128, meansChannels = 32;  // of a block

}  // namespace octconv::cuda

#if !OCTCONV_KERNELS
#include "kernel.h"

namespace octconv::cuda {
Launch meansOf(const TensorType& type, int64_t x, int64_t y);
}
#endif
