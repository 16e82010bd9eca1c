// One vector of f32, or of i32, of the level that this file is compiled for, and how f32, bf16 and u8 elements get in
// and out of it. Includes no standard header but the compiler's own.
#pragma once
#include <stddef.h>
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA)
#include <arm_neon.h>
#endif

#include "../core/element.h"

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
typedef int32_t IntVec __attribute__((vector_size(4 * lanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * lanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * lanes)));
typedef uint8_t Bytes __attribute__((vector_size(lanes)));
typedef uint16_t Shorts __attribute__((vector_size(4 * lanes)));
typedef uint8_t ManyBytes __attribute__((vector_size(2 * lanes)));

template <class V>
struct Anywhere {  // a vector at any address
  V value;
} __attribute__((packed, may_alias));

OCTCONV_INLINE Vec load(const float* from) { return reinterpret_cast<const Anywhere<Vec>*>(from)->value; }
// g++ 12 takes bytes one by one and halves of a register apart unless it is told.
OCTCONV_INLINE Vec load(const BFloat16* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__) && !defined(OCTCONV_EMULATE_AVX512)
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#else
  const Halves x = reinterpret_cast<const Anywhere<Halves>*>(from)->value;
  return (Vec)(__builtin_convertvector(x, Bits) << 16);
#endif
}
OCTCONV_INLINE Vec load(const uint8_t* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__) && !defined(OCTCONV_EMULATE_AVX512)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadu_si64(from)));
#else
  const Bytes x = reinterpret_cast<const Anywhere<Bytes>*>(from)->value;
  return __builtin_convertvector(__builtin_convertvector(x, IntVec), Vec);
#endif
}

// Rounds to the nearest, to even between two. A NaN stays one. (The instruction takes denormal numbers as 0, as the dot
// product of bf16 does.)
OCTCONV_INLINE Halves halves(Vec x) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
  const Bits bits = (Bits)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Bits all = ((Bits)(x == x) & rounded) | ((Bits)(x != x) & 0x7fc0);
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(OCTCONV_EMULATE_AVX512)  // g++ 12 shuffles more
  const auto both = (__m256i)all;
  return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
#else
  return __builtin_convertvector(all, Halves);
#endif
#endif
}
// Of numbers from 0 to 255, to even between two; NaN becomes 0.
OCTCONV_INLINE Bytes bytes(Vec x) {
#if defined(__AVX512F__)
  return (Bytes)_mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)x));
#elif defined(__AVX2__) && !defined(OCTCONV_EMULATE_AVX512)
  const __m256i q = _mm256_cvtps_epi32((__m256)x);
  const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  return (Bytes)_mm_cvtsi128_si64(_mm_packus_epi16(shorts, shorts));
#else
  x = x == x ? x : Vec{};
  return __builtin_convertvector((Bits)(x + 0x1.8p23f) & 255, Bytes);
#endif
}

// What is read back of a vector that is stored as f32 or bf16.
template <class T>
OCTCONV_INLINE Vec rounded(Vec x) {
  if constexpr (sizeof(T) == 4) return x;
  static_assert(sizeof(T) >= 2);
  const Halves all = halves(x);
  return load((const BFloat16*)&all);
}

OCTCONV_INLINE void store(float* to, Vec x) { reinterpret_cast<Anywhere<Vec>*>(to)->value = x; }
OCTCONV_INLINE void store(BFloat16* to, Vec x) { reinterpret_cast<Anywhere<Halves>*>(to)->value = halves(x); }
OCTCONV_INLINE void store(uint8_t* to, Vec x) { reinterpret_cast<Anywhere<Bytes>*>(to)->value = bytes(x); }

// The first `count` lanes; the others are zero or stay as they are in memory.
#if defined(__AVX512F__)
OCTCONV_INLINE __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
OCTCONV_INLINE Vec load(const float* from, int count) { return (Vec)_mm512_maskz_loadu_ps(first(count), from); }
OCTCONV_INLINE Vec load(const BFloat16* from, int count) {
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(count), from)), 16);
}
OCTCONV_INLINE Vec load(const uint8_t* from, int count) {
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(count), from)));
}
OCTCONV_INLINE void store(float* to, Vec x, int count) { _mm512_mask_storeu_ps(to, first(count), (__m512)x); }
OCTCONV_INLINE void store(BFloat16* to, Vec x, int count) {
  _mm256_mask_storeu_epi16(to, first(count), (__m256i)halves(x));
}
OCTCONV_INLINE void store(uint8_t* to, Vec x, int count) { _mm_mask_storeu_epi8(to, first(count), (__m128i)bytes(x)); }
#else
#if defined(__AVX2__) && !defined(OCTCONV_EMULATE_AVX512)
OCTCONV_INLINE __m256i first(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// vmaskmovps is slow on AMD: on Zen 1 a load takes 10 cycles and a store 12.
OCTCONV_INLINE Vec load(const float* from, int count) {
  if (count == lanes / 2) return (Vec)_mm256_zextps128_ps256(_mm_loadu_ps(from));
  return (Vec)_mm256_maskload_ps(from, first(count));
}
OCTCONV_INLINE void store(float* to, Vec x, int count) {
  if (count == lanes) return store(to, x);
  __m128 part = _mm256_castps256_ps128((__m256)x);
  if (count & 4) {
    _mm_storeu_ps(to, part);
    to += 4;
    part = _mm256_extractf128_ps((__m256)x, 1);
  }
  if (count & 2) {
    _mm_storel_pi((__m64*)to, part);
    to += 2;
    part = _mm_movehl_ps(part, part);
  }
  if (count & 1) _mm_store_ss(to, part);
}
#endif
template <class T>
OCTCONV_INLINE Vec load(const T* from, int count) {
  T some[lanes] = {};
  for (int i = 0; i < count; i++) some[i] = from[i];
  return load(some);
}
template <class T>
OCTCONV_INLINE void store(T* to, Vec x, int count) {
  T all[lanes];
  store(all, x);
  for (int i = 0; i < count; i++) to[i] = all[i];
}
#endif

// Whether a part of a vector is loaded and stored without a copy in memory.
template <class T>
#if defined(__AVX512F__)
inline constexpr bool hasParts = true;
#elif defined(__AVX2__) && !defined(OCTCONV_EMULATE_AVX512)
inline constexpr bool hasParts = sizeof(T) == 4;
#else
inline constexpr bool hasParts = false;
#endif

// As many elements as fit into a vector: for sums of a few of them u8 as u16, others as f32.
template <class T>
inline constexpr int elements = sizeof(T) == 1 ? 2 * lanes : lanes;

OCTCONV_INLINE Vec widened(const float* from) { return load(from); }
OCTCONV_INLINE Vec widened(const BFloat16* from) { return load(from); }
OCTCONV_INLINE Shorts widened(const uint8_t* from) {
#if defined(__AVX512BW__)
  return (Shorts)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__) && !defined(OCTCONV_EMULATE_AVX512)
  return (Shorts)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)from));
#else
  return __builtin_convertvector(reinterpret_cast<const Anywhere<ManyBytes>*>(from)->value, Shorts);
#endif
}
OCTCONV_INLINE void store(uint8_t* to, Shorts x) {  // of numbers from 0 to 255
#if defined(__AVX512BW__)
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi16_epi8((__m512i)x));
#elif defined(__AVX2__) && !defined(OCTCONV_EMULATE_AVX512)
  const auto both = (__m256i)x;
  _mm_storeu_si128((__m128i*)to, _mm_packus_epi16(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
#else
  reinterpret_cast<Anywhere<ManyBytes>*>(to)->value = __builtin_convertvector(x, ManyBytes);
#endif
}
// The first `count`; the others are zero or stay as they are in memory.
template <class T>
OCTCONV_INLINE auto widened(const T* from, int count) {
  if (count == elements<T>) return widened(from);
  T some[elements<T>] = {};
  __builtin_memcpy(some, from, count * sizeof(T));
  return widened(some);
}
template <class T, class V>
OCTCONV_INLINE void narrow(T* to, V x, int count) {
  if (count == elements<T>) return store(to, x);
  T all[elements<T>];
  store(all, x);
  __builtin_memcpy(to, all, count * sizeof(T));
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
OCTCONV_INLINE Bits splatBits(uint32_t x) {
#if defined(__AVX512F__)
  return (Bits)_mm512_set1_epi32(static_cast<int>(x));
#elif defined(OCTCONV_EMULATE_AVX512)
  return Bits{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif defined(__AVX2__)
  return (Bits)_mm256_set1_epi32(static_cast<int>(x));
#else
  return Bits{x, x, x, x};
#endif
}

// a * b + c, rounded once where the level can. g++ contracts an expression only within one basic block, so copies of a
// loop that it makes may round differently: sums over elements that a branch has loaded are written with this.
OCTCONV_INLINE Vec multiplyAdd(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  union Registers {
    Vec all;
    __m256 part[lanes / 8];
  } x{a}, y{b}, z{c};
  for (int i = 0; i < lanes / 8; i++) z.part[i] = _mm256_fmadd_ps(x.part[i], y.part[i], z.part[i]);
  return z.all;
#elif defined(__ARM_FEATURE_FMA)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// Comparisons are such that a NaN in x stays, as in PyTorch.
OCTCONV_INLINE Vec clamp(Vec x, Vec low, Vec high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

}  // namespace octconv::OCTCONV_LEVEL
