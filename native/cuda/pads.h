// Zeros behind the channels of each pixel (TensorType::pad), for kernels that write channels alone.
#pragma once
#include "items.h"
#include "tensor.h"

namespace octconv::cuda {
struct PadsArgs {
  int64_t at;  // bytes from the arena's begin
  int64_t pixels;
  int first, pad, pitch;  // elements
  int bytes;              // of an element
};
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
#include "units.h"

namespace octconv::cuda {
OCTCONV_KERNEL void __launch_bounds__(itemThreads, 8) clearPads(const __grid_constant__ PadsArgs a, char* arena) {
  const int64_t item = itemIndex(), pixel = item / a.pad;
  if (pixel >= a.pixels) return;
  const int64_t element = pixel * a.pitch + a.first + (item - pixel * a.pad);
  byUnit(a.bytes, [&](auto zero) { reinterpret_cast<decltype(zero)*>(arena + a.at)[element] = zero; });
}
}  // namespace octconv::cuda

#else
namespace octconv::cuda {
inline Launch clearPads(const TensorType& type, int64_t at) {
  const TensorArgs x = tensorOf(type, at);
  const int64_t pixels = type.shape.pixels();
  return launchItems(
      "clearPads", pixels * type.pad,
      PadsArgs{at, pixels, x.channels, static_cast<int>(type.pad), x.pitch, static_cast<int>(bytesOf(type.dtype))});
}
}  // namespace octconv::cuda
#endif
