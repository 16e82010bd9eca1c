// One vector of f32 of the level that this file is compiled for. Includes no standard header but the compiler's own.
#pragma once
#include <stddef.h>
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define OCTCONV_INLINE static inline __attribute__((always_inline))

namespace octconv::OCTCONV_LEVEL {

// OCTCONV_EMULATE_AVX512: 16 lanes in two AVX2 registers, so that the AVX-512 kernels can be tested without the CPU.
#if defined(__AVX512F__) || defined(OCTCONV_EMULATE_AVX512)
inline constexpr int lanes = 16;
#elif defined(__AVX2__)
inline constexpr int lanes = 8;
#else
inline constexpr int lanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * lanes)));
typedef float VecAnywhere __attribute__((vector_size(4 * lanes), aligned(4), may_alias));

OCTCONV_INLINE Vec load(const float* from) { return *reinterpret_cast<const VecAnywhere*>(from); }
OCTCONV_INLINE void store(float* to, Vec x) { *reinterpret_cast<VecAnywhere*>(to) = x; }

// The first `count` lanes; the others are zero or stay as they are in memory.
OCTCONV_INLINE Vec load(const float* from, int count) {
  Vec x = {};
  for (int i = 0; i < count; i++) x[i] = from[i];
  return x;
}
OCTCONV_INLINE void store(float* to, Vec x, int count) {
  for (int i = 0; i < count; i++) to[i] = x[i];
}

OCTCONV_INLINE Vec splat(float x) {
#if defined(__AVX512F__)  // g++ 12 builds a set1 from scalar inserts unless it is told
  return (Vec)_mm512_set1_ps(x);
#elif defined(OCTCONV_EMULATE_AVX512)
  return Vec{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif defined(__AVX2__)
  return (Vec)_mm256_set1_ps(x);
#else
  return Vec{x, x, x, x};
#endif
}

// Comparisons are such that a NaN in x stays, as in PyTorch.
OCTCONV_INLINE Vec clamp(Vec x, Vec low, Vec high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

}  // namespace octconv::OCTCONV_LEVEL
