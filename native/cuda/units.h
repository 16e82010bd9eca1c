// Kernels that only move elements take up to 16 bytes of them at once.
#pragma once
#include "sides.h"

#if OCTCONV_KERNELS
#include "intrinsics.h"

namespace octconv::cuda {

struct alignas(16) Bytes16 {
  uint32_t words[4];
};

// Calls `f` with a unit of so many bytes: 1, 2, 4, 8 or 16.
template <class F>
OCTCONV_DEVICE void byUnit(int bytes, const F& f) {
  switch (bytes) {
    case 16:
      return f(Bytes16{});
    case 8:
      return f(uint64_t{});
    case 4:
      return f(uint32_t{});
    case 2:
      return f(uint16_t{});
    default:
      return f(uint8_t{});
  }
}

}  // namespace octconv::cuda

#else
#include <initializer_list>

namespace octconv::cuda {

// The largest unit of which all these are multiples.
inline int unitOf(std::initializer_list<int64_t> bytes) {
  int unit = 16;
  for (const int64_t x : bytes)
    while (x % unit != 0) unit /= 2;
  return unit;
}

}  // namespace octconv::cuda
#endif
