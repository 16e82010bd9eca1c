// What tensor cores multiply, as types of which a kernel is made. A chunk of 64 bytes of a row is two products.
#pragma once
#include "intrinsics.h"

namespace octconv::cuda {

struct F16 {
  static constexpr int bytes = 2;
  static OCTCONV_DEVICE void round(uint32_t (&)[4]) {}
  static OCTCONV_DEVICE uint32_t pack(float low, float high) { return packF16(low, high); }
  static OCTCONV_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiplyF16(d, a, b);
  }
};
#if OCTCONV_SM80
struct Bf16 {
  static constexpr int bytes = 2;
  static OCTCONV_DEVICE void round(uint32_t (&)[4]) {}
  static OCTCONV_DEVICE uint32_t pack(float low, float high) { return packBf16(low, high); }
  static OCTCONV_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiplyBf16(d, a, b);
  }
};
struct Tf32 {
  static constexpr int bytes = 4;
  static OCTCONV_DEVICE void round(uint32_t (&a)[4]) {
    for (uint32_t& x : a) x = roundToTf32(x);
  }
  static OCTCONV_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiplyTf32(d, a, b);
  }
};
#endif

}  // namespace octconv::cuda
