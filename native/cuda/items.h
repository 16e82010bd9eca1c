// Kernels of which a thread computes one item, such as an element of the result.
#pragma once
#include "sides.h"

namespace octconv::cuda {
inline constexpr int itemThreads = 128;  // of a block
}

#if OCTCONV_KERNELS
#include "intrinsics.h"

namespace octconv::cuda {
OCTCONV_DEVICE int64_t itemIndex() { return static_cast<int64_t>(blockIndex()) * itemThreads + threadIndex(); }
}  // namespace octconv::cuda

#else
#include "kernel.h"

namespace octconv::cuda {

template <class Arguments>
Launch launchItems(std::string kernel, int64_t items, const Arguments& arguments) {
  const int64_t blocks = (items + itemThreads - 1) / itemThreads;
  return launchOf(std::move(kernel), static_cast<unsigned>(intOf(blocks, "blocks")), itemThreads, 0, arguments);
}

}  // namespace octconv::cuda
#endif
