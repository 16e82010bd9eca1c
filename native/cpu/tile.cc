#include "tile.h"

#include "finish.h"

namespace octconv::OCTCONV_LEVEL {

// AVX-512 has 32 registers: 6 x 4 and 8 x 3 sums leave enough for weights and inputs. Of the 16 of AVX2, 12 are sums.
#if defined(__AVX512F__) || defined(OCTCONV_EMULATE_AVX512)
inline constexpr bool manyRegisters = true;
#else
inline constexpr bool manyRegisters = false;
#endif

// --- Products of words ------------------------------------------------------------------------------------------
//
// A type says what a sum is, and how one word of each of M pixels is multiplied with V vectors of weights.

OCTCONV_INLINE Bits loadBits(const char* from) { return reinterpret_cast<const Anywhere<Bits>*>(from)->value; }
OCTCONV_INLINE Bits splatWord(const char* from) {
  return splatBits(reinterpret_cast<const Anywhere<uint32_t>*>(from)->value);
}

// One step of a type whose weights are one word per channel and that has a dot product of words.
template <class Type>
struct ByWords {
  static constexpr int wordBytes = 4;
  template <int M, int V, class Sum>
  OCTCONV_INLINE void step(Sum (&acc)[M][V], const char* const (&a)[M], ptrdiff_t at, const char* w) {
    Bits b[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) b[v] = loadBits(w + v * 4 * lanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      const Bits x = splatWord(a[m] + at);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) acc[m][v] = Type::dot(acc[m][v], x, b[v]);
    }
  }
};

struct F32 : ByWords<F32> {
  using Sum = Vec;
  using Element = float;
  static constexpr DType dtype = DType::f32;  // of activations
  static constexpr Words words = Words::f32;
  // 6 x 2 reaches 97 % of the measured FMA peak with AVX2; 4 x 3 the same with g++ 12 but 43 % with clang 19, which
  // moves sums around: it serves only an odd vector of channels.
  static constexpr TileShape shape = manyRegisters ? TileShape{4, 4, {0, 8, 8, 8, 6}} : TileShape{2, 3, {0, 8, 6, 4}};
  OCTCONV_INLINE Sum dot(Sum sum, Bits x, Bits w) { return sum + (Vec)x * (Vec)w; }
};

// The two bf16 of a word as f32.
OCTCONV_INLINE Vec even(Bits x) { return (Vec)(x << 16); }
OCTCONV_INLINE Vec odd(Bits x) { return (Vec)(x & 0xffff0000u); }

#if defined(__AVX512BF16__) || defined(OCTCONV_EMULATE_BF16)
struct BF16 : ByWords<BF16> {
  using Sum = Vec;
  using Element = BFloat16;
  static constexpr DType dtype = DType::bf16;  // of activations
  static constexpr Words words = Words::bf16;
  static constexpr TileShape shape = F32::shape;
  OCTCONV_INLINE Sum dot(Sum sum, Bits x, Bits w) {
#if defined(__AVX512BF16__)
    return (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
    return sum + odd(x) * odd(w) + even(x) * even(w);
#endif
  }
};
#else
// Weights stay f32 in memory: to widen them too took more registers than there are, 34 instead of 47 GMAdd/s (f32: 49).
// The more vectors, the less taking apart for a product: 4 x 3 makes 47, 4 x 2 42, 6 x 2 34.
struct BF16 {
  using Sum = Vec;
  using Element = BFloat16;
  static constexpr DType dtype = DType::bf16;  // of activations
  static constexpr Words words = Words::bf16AsF32;
  static constexpr TileShape shape = manyRegisters ? TileShape{4, 4, {0, 8, 8, 8, 6}} : TileShape{3, 3, {0, 8, 4, 4}};
  static constexpr int wordBytes = 8;
  template <int M, int V, class Half>
  OCTCONV_INLINE void half(Sum (&acc)[M][V], const char* const (&a)[M], ptrdiff_t at, const char* w, Half&& half) {
    Vec b[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) b[v] = (Vec)loadBits(w + v * 4 * lanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      const Vec x = half(splatWord(a[m] + at));
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) acc[m][v] += x * b[v];
    }
    asm volatile("" ::: "memory");  // or g++ keeps the words of the other half in registers that it does not have
  }
  template <int M, int V>
  OCTCONV_INLINE void step(Sum (&acc)[M][V], const char* const (&a)[M], ptrdiff_t at, const char* w) {
    half<M, V>(acc, a, at, w, even);
    half<M, V>(acc, a, at, w + V * 4 * lanes, odd);
  }
};
#endif

#if defined(__AVX2__) && !defined(__AVX512BW__)
// Register by register: a vector is two where AVX-512 is emulated.
template <class F>
OCTCONV_INLINE Bits byRegister(Bits x, Bits w, F&& f) {
  union Parts {
    Bits all;
    __m256i part[sizeof(Bits) / 32];
  } a{x}, b{w};
  for (size_t i = 0; i < sizeof(Bits) / 32; i++) a.part[i] = f(a.part[i], b.part[i]);
  return a.all;
}
#endif

// Sums of products of pairs of i16.
OCTCONV_INLINE IntVec pairs(Bits x, Bits w) {
#if defined(__AVX512BW__)
  return (IntVec)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif defined(__AVX2__)
  return (IntVec)byRegister(x, w, [](__m256i a, __m256i b) { return _mm256_madd_epi16(a, b); });
#else
  return ((IntVec)(x << 16) >> 16) * ((IntVec)(w << 16) >> 16) + ((IntVec)x >> 16) * ((IntVec)w >> 16);
#endif
}

struct I8 : ByWords<I8> {
  using Sum = IntVec;
  using Element = uint8_t;
  static constexpr DType dtype = DType::u8;  // of activations
  static constexpr Words words = Words::u8;
  static constexpr TileShape shape = F32::shape;
#if defined(__AVX512VNNI__)
  static constexpr bool saturates = false;
  OCTCONV_INLINE Sum dot(Sum sum, Bits x, Bits w) {
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
  }
#elif defined(__AVX2__) && !defined(OCTCONV_EMULATE_VNNI)
  // Pairs of products in 16 bits, which saturate where two weights add up to more than 128: 97 GMAdd/s (f32: 49).
  static constexpr bool saturates = true;
  OCTCONV_INLINE Sum dot(Sum sum, Bits x, Bits w) {
#if defined(__AVX512BW__)
    const auto both = (Bits)_mm512_maddubs_epi16((__m512i)x, (__m512i)w);
#else
    const Bits both = byRegister(x, w, [](__m256i a, __m256i b) { return _mm256_maddubs_epi16(a, b); });
#endif
    return sum + pairs(both, splatBits(0x00010001));
  }
#else
  static constexpr bool saturates = false;
  OCTCONV_INLINE Sum dot(Sum sum, Bits x, Bits w) {
    for (int i = 0; i < 4; i++) sum += (Sum)(x >> 8 * i & 255) * ((Sum)(w << (24 - 8 * i)) >> 24);
    return sum;
  }
#endif
};

// Any weights, also 128 (-128 behind a negative batch normalisation), and where I8 saturates: pairs of 16 bits. 3 x 4
// makes 77 GMAdd/s, 4 x 3 71, 6 x 2 68, but the more pixels the less often weights come from L2. (Activations widened
// in memory: 80.)
struct I8Wide {
  using Sum = IntVec;
  using Element = uint8_t;
  static constexpr DType dtype = DType::u8;  // of activations
  static constexpr Words words = Words::u8AsI16;
  static constexpr TileShape shape =
      manyRegisters ? TileShape{4, 4, {0, 8, 8, 6, 4}} : TileShape{3, 4, {0, 8, 6, 4, 3}};
  static constexpr int wordBytes = 8;
  template <int M, int V>
  OCTCONV_INLINE void step(Sum (&acc)[M][V], const char* const (&a)[M], ptrdiff_t at, const char* w) {
    Bits b0[V], b1[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) b0[v] = loadBits(w + v * 4 * lanes), b1[v] = loadBits(w + (V + v) * 4 * lanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      const Bits x = splatWord(a[m] + at), x0 = x & 0x00ff00ff, x1 = (Bits)((Shorts)x >> 8);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) acc[m][v] += pairs(x0, b0[v]);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) acc[m][v] += pairs(x1, b1[v]);
    }
  }
};

// Two i16 by two i16.
struct I16 : ByWords<I16> {
  using Sum = IntVec;
  using Element = float;
  static constexpr DType dtype = DType::f32;  // of outputs
  static constexpr Words words = Words::i16;
  static constexpr TileShape shape = F32::shape;
  OCTCONV_INLINE Sum dot(Sum sum, Bits x, Bits w) {
#if defined(__AVX512VNNI__)
    return (Sum)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#else
    return (Sum)((Bits)sum + (Bits)pairs(x, w));  // modulo 2^32
#endif
  }
};

// --- Before and after the sum -----------------------------------------------------------------------------------

// Integer sums get their scale and bias at the end, others begin with the bias.
template <class Sum, int M, int V>
OCTCONV_INLINE void begin(const Tile& t, Sum (&acc)[M][V]) {
  Sum first[V] = {};
  if (!t.raw && !t.scale) {
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) first[v] = (Sum)load(t.bias + v * lanes);
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) acc[m][v] = first[v];
  if (!t.start) return;
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) acc[m][v] += (Sum)loadBits(t.start[m] + v * 4 * lanes);
}

template <class Residual, class Out>
static void finishMixed(const Tile& t, const Vec* sums, int pixels, int vectors) {
  for (int m = 0; m < pixels; m++)
    for (int v = 0; v * lanes < t.channels; v++) {
      const ptrdiff_t left = t.channels - v * lanes;
      const Vec y = t.scale ? sums[m * vectors + v] : sums[m * vectors + v] * t.steps + t.shift;
      finishVector<Residual, Out>(t, y, m * t.pitch + v * lanes, m * t.residualPitch + v * lanes,
                                  left < lanes ? static_cast<int>(left) : lanes);
    }
}

// The general case, out of line: any types, any number of channels.
__attribute__((noinline)) static void finishAny(const Tile& t, const Vec* y, int pixels, int vectors) {
  const auto into = [&](auto residual) {
    using Residual = decltype(residual);
    if (t.out.dtype == DType::u8)
      finishMixed<Residual, uint8_t>(t, y, pixels, vectors);
    else if (t.out.dtype == DType::bf16)
      finishMixed<Residual, BFloat16>(t, y, pixels, vectors);
    else
      finishMixed<Residual, float>(t, y, pixels, vectors);
  };
  if (t.residual.dtype == DType::u8)
    into(uint8_t{});
  else if (t.residual.dtype == DType::bf16)
    into(BFloat16{});
  else
    into(float{});
}

template <class Type, class Sum, int M, int V>
OCTCONV_INLINE void finish(const Tile& t, const Sum (&acc)[M][V]) {
  if (t.raw) {
    auto* to = static_cast<float*>(t.out.data);
    const ptrdiff_t pitch = t.pitch;
#pragma GCC unroll 16
    for (int m = 0; m < M; m++, to += pitch)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) store(to + v * lanes, (Vec)acc[m][v]);
    return;
  }
  Vec y[M][V];
#pragma GCC unroll 4
  for (int v = 0; v < V; v++) {
    const Vec scale = t.scale ? load(t.scale + v * lanes) * t.steps : Vec{},
              bias = t.scale ? load(t.bias + v * lanes) * t.steps + t.shift : Vec{};
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      y[m][v] = asFloat(acc[m][v]);
      if (t.scale) y[m][v] = y[m][v] * scale + bias;
    }
  }
  // Inside of a network: residual and output of the tile's own type.
  using Element = typename Type::Element;
  const bool own = t.out.dtype == Type::dtype && (!t.residual.data || t.residual.dtype == Type::dtype);
  const ptrdiff_t last = t.channels - (V - 1) * lanes;  // channels of the last vector
  const Epilogue e = t;                                 // no store can change it: its members stay in registers
  const auto finishOwn = [&](int count) {
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++)
        finishVector<Element, Element>(e, y[m][v], m * e.pitch + v * lanes, m * e.residualPitch + v * lanes,
                                       v < V - 1 ? lanes : count);
  };
  if (own && last == lanes) return finishOwn(lanes);
  if constexpr (hasParts<Element>)
    if (own && last > 0 && last < lanes) return finishOwn(static_cast<int>(last));
  Vec copy[M][V];  // whose address is known; y stays in registers
  __builtin_memcpy(copy, y, sizeof y);
  finishAny(t, &copy[0][0], M, V);
}

// Stores the mean of each window of four pixels.
template <class Type, int M, int V>
OCTCONV_INLINE void finishPooled(const Tile& t, const Vec (&acc)[M][V]) {
  using Element = typename Type::Element;
  const Vec least = splat(t.least), most = splat(t.most);
  const ptrdiff_t last = t.channels - (V - 1) * lanes;  // channels of the last vector
#pragma GCC unroll 2
  for (int w = 0; w < M / 4; w++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      const auto value = [&](int m) { return rounded<Element>(clamp(acc[4 * w + m][v], least, most)); };
      const Vec mean = ((value(0) + value(1)) + (value(2) + value(3))) * splat(.25f);
      Element* to = static_cast<Element*>(t.out.data) + w * t.pitch + v * lanes;
      v < V - 1 || last == lanes ? store(to, mean) : store(to, mean, static_cast<int>(last));
    }
}

// Residual and output come into the cache while the sum is computed.
template <class Type, int M, int V>
OCTCONV_INLINE void fetchEnds(const Tile& t) {
  constexpr auto size = static_cast<ptrdiff_t>(sizeof(typename Type::Element)), bytes = V * lanes * size;
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (ptrdiff_t line = 0; line < bytes; line += 64) {
      if (t.residual.data)
        __builtin_prefetch(static_cast<const char*>(t.residual.data) + m * t.residualPitch * size + line);
      __builtin_prefetch(static_cast<char*>(t.out.data) + m * t.pitch * size + line, 1);
    }
}

// --- The tiles --------------------------------------------------------------------------------------------------

// Goes on to the next tile: behind M pixels, for which so many are stored.
template <int M, int stored = M>
OCTCONV_INLINE void advance(Tile& t, ptrdiff_t step = 1) {
  t.indirection += M * step;
  if (t.start) t.start += M;
  if (t.residual.data) t.residual.data = static_cast<char*>(t.residual.data) + M * t.residualBytes;
  t.out.data = static_cast<char*>(t.out.data) + stored * t.outBytes;
}

template <class Type, int M, int V, bool pooled>
OCTCONV_INLINE void oneTile(Tile& t) {
  typename Type::Sum acc[M][V];
  begin<typename Type::Sum, M, V>(t, acc);
  if (!t.raw) fetchEnds<Type, pooled ? M / 4 : M, V>(t);
  constexpr int step = V * lanes * Type::wordBytes;
  const char *w = t.weights, *ahead = t.ahead;
  const char* const* inputs = t.indirection;
  for (const TapRun* s = t.tapRuns; s < t.tapRuns + t.tapRunCount; s++) {
    for (int64_t tap = 0; tap < s->taps; tap++, inputs += t.tapStride) {
      const char* a[M];
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) a[m] = inputs[m] + s->offset + s->bytes;
      for (ptrdiff_t at = -s->bytes; at < 0; at += 4, w += step) {
        for (int line = 0; line < step; line += 128) __builtin_prefetch(ahead + line / 2, 0, 2);
        ahead += t.aheadStep;
        Type::template step<M, V>(acc, a, at, w);
      }
    }
  }
  t.ahead = ahead;
  if constexpr (pooled)
    finishPooled<Type, M, V>(t, acc);
  else
    finish<Type, typename Type::Sum, M, V>(t, acc);
}

template <class Type, int M, int V, bool pooled>
static void tile(Tile& t, int64_t count) {
  constexpr int stored = pooled ? M / 4 : M;
  for (; count > 0; count--, advance<M, stored>(t)) oneTile<Type, M, V, pooled>(t);
}

// Loads each input that M neighbours in a row of pixels read through a row of 3 taps once: body(input, m, k) where
// pixel m reads it through tap k.
template <int M, int stride, class Load, class Body>
OCTCONV_INLINE void slide(const char* const* inputs, Load&& load, Body&& body) {
#pragma GCC unroll 32
  for (int j = 0; j < stride * (M - 1) + 3; j++) {
    const Vec x = load(inputs[j]);
#pragma GCC unroll 3
    for (int k = 0; k < 3; k++)
      if (j >= k && (j - k) % stride == 0 && (j - k) / stride < M) body(x, (j - k) / stride, k);
  }
}

// Every channel is its own group: input vectors instead of splats. Sums are f32, exact for u8 (25 taps are 20 bits).
template <class Type, int M, int stride, bool whole>
OCTCONV_INLINE void addDepthwise(const Tile& t, Vec (&acc)[M][1]) {
  using Element = typename Type::Element;
  const auto* w = reinterpret_cast<const float*>(t.weights);
  const char* const* inputs = t.indirection;
  for (const TapRun* s = t.tapRuns; s < t.tapRuns + t.tapRunCount; s++) {
    const auto loadAt = [&](const char* from) {
      const auto* a = reinterpret_cast<const Element*>(from + s->offset);
      return whole ? load(a) : load(a, static_cast<int>(t.channels));
    };
    if constexpr (stride > 0) {
      const char* const* row = inputs;
      for (int64_t tap = 0; tap < s->taps; tap += 3, row += t.tapStride, w += 3 * lanes) {
        const Vec weights[3] = {load(w), load(w + lanes), load(w + 2 * lanes)};
        slide<M, stride>(row, loadAt, [&](Vec x, int m, int k) { acc[m][0] = multiplyAdd(x, weights[k], acc[m][0]); });
      }
      inputs += t.runStride;
    } else {
      for (int64_t tap = 0; tap < s->taps; tap++, inputs += t.tapStride, w += lanes)
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) acc[m][0] = multiplyAdd(loadAt(inputs[m]), load(w), acc[m][0]);
    }
  }
}

template <class Type, int M, int stride>
OCTCONV_INLINE void oneDepthwise(const Tile& t) {
  Vec acc[M][1];
  begin<Vec, M, 1>(t, acc);
  t.channels >= lanes ? addDepthwise<Type, M, stride, true>(t, acc) : addDepthwise<Type, M, stride, false>(t, acc);
  finish<Type, Vec, M, 1>(t, acc);
}

// Lanes of two vectors, one behind the other, in another order; of the first alone where the order says nothing else.
#if defined(__AVX512F__)
inline constexpr bool permutes = true;
OCTCONV_INLINE Vec permuted(Vec x, IntVec order) { return (Vec)_mm512_permutexvar_ps((__m512i)order, (__m512)x); }
OCTCONV_INLINE Vec permuted(Vec x, Vec y, IntVec order) {
  return (Vec)_mm512_permutex2var_ps((__m512)x, (__m512i)order, (__m512)y);
}
#elif defined(__AVX2__) && !defined(OCTCONV_EMULATE_AVX512)
inline constexpr bool permutes = true;
OCTCONV_INLINE Vec permuted(Vec x, IntVec order) { return (Vec)_mm256_permutevar8x32_ps((__m256)x, (__m256i)order); }
OCTCONV_INLINE Vec permuted(Vec x, Vec y, IntVec order) {
  return order < lanes ? permuted(x, order) : permuted(y, order);
}
#else
#if defined(OCTCONV_EMULATE_AVX512)
inline constexpr bool permutes = true;
#else
inline constexpr bool permutes = false;
#endif
OCTCONV_INLINE Vec permuted(Vec x, Vec y, IntVec order) {
  Vec z{};
  for (int i = 0; i < lanes; i++) z[i] = order[i] < lanes ? x[order[i]] : y[order[i] - lanes];
  return z;
}
OCTCONV_INLINE Vec permuted(Vec x, IntVec order) { return permuted(x, x, order); }
#endif

// The first of the elements that there are; the others are zero.
template <class Element>
OCTCONV_INLINE Vec loadSome(const Element* from, int64_t there) {
  return there >= lanes ? load(from) : there > 0 ? load(from, static_cast<int>(there)) : Vec{};
}

// Whether lanes can take words of several elements.
template <class Type>
constexpr bool hasWords = __is_base_of(ByWords<Type>, Type) && Type::dtype != DType::f32;
// What a lane takes at once. Elements: sums are f32, exact for u8 up to 512 products (24 bits).
template <class Type>
struct ByElement {
  static constexpr bool common = !hasWords<Type> && Type::dtype != DType::u8;
  using Sum = Vec;
  using Element = typename Type::Element;
  OCTCONV_INLINE Sum add(Sum sum, Vec x, Vec w) { return multiplyAdd(x, w, sum); }
};
// Words, moved as if they were f32.
template <class Type>
struct ByWord {
  static constexpr bool common = true;
  using Sum = typename Type::Sum;
  using Element = float;
  OCTCONV_INLINE Sum add(Sum sum, Vec x, Vec w) { return Type::dot(sum, (Bits)x, (Bits)w); }
};

// Input i of each lane's group, where groups of 2 or 4 inputs and outputs fill the vector. On Zen 1 it takes one cycle,
// permuted() four. Only of f32: other types are rarely computed by element.
template <int inputs>
OCTCONV_INLINE Vec ofOwnGroup(Vec x, int64_t i);
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(OCTCONV_EMULATE_AVX512)
template <class By>
constexpr bool hasOwnGroups = __is_same(By, ByElement<F32>);
template <int inputs>
OCTCONV_INLINE Vec ofOwnGroup(Vec x, int64_t i) {
  const auto y = (__m256)x;
  if (inputs == 2) return (Vec)(i == 0 ? _mm256_moveldup_ps(y) : _mm256_movehdup_ps(y));
  return (Vec)(i == 0   ? _mm256_permute_ps(y, 0x00)
               : i == 1 ? _mm256_permute_ps(y, 0x55)
               : i == 2 ? _mm256_permute_ps(y, 0xaa)
                        : _mm256_permute_ps(y, 0xff));
}
#else
template <class By>
constexpr bool hasOwnGroups = false;
#endif

// Several channels to a group, several groups to a vector: each lane takes the inputs of its group, one after the
// other, from those of a pixel, which lie in one vector or in two. `own`: where TapRun::own holds its inputs, or 0.
template <class By, int M, int stride, bool two, bool whole, int own = 0>
OCTCONV_INLINE void addGrouped(const Tile& t, const TapRun& s, const char* const* inputs, const float*& w,
                               typename By::Sum (&acc)[M][1]) {
  using Element = typename By::Element;
  const IntVec first = reinterpret_cast<const Anywhere<IntVec>*>(s.at)->value - s.at[0];
  const auto loadAt = [&](const char* from, int64_t i, IntVec order) {
    const auto* a = reinterpret_cast<const Element*>(from + s.offset);
    const Vec x = whole ? load(a) : loadSome(a, s.left);
    if constexpr (own > 0) return ofOwnGroup<own>(x, i);
    if (!two) return permuted(x, order);
    return permuted(x, whole ? load(a + lanes) : loadSome(a + lanes, s.left - lanes), order);
  };
  const ptrdiff_t tapWeights = s.inputs * lanes;
  constexpr int64_t taps = stride ? 3 : 1;
  for (int64_t tap = 0; tap < s.taps; tap += taps, inputs += t.tapStride, w += (taps - 1) * tapWeights) {
    IntVec order = first;
    const auto add = [&](int64_t i) {
      if constexpr (stride > 0) {
        const Vec weights[3] = {load(w), load(w + tapWeights), load(w + 2 * tapWeights)};
        slide<M, stride>(
            inputs, [&](const char* from) { return loadAt(from, i, order); },
            [&](Vec x, int m, int k) { acc[m][0] = By::add(acc[m][0], x, weights[k]); });
      } else {
        const Vec weights = load(w);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) acc[m][0] = By::add(acc[m][0], loadAt(inputs[m], i, order), weights);
      }
      order += 1, w += lanes;
    };
    if constexpr (own > 0) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < own; i++) add(i);
    } else {
      for (int64_t i = 0; i < s.inputs; i++) add(i);
    }
  }
}

template <class Type, class By, int M, int stride>
OCTCONV_INLINE void oneGrouped(const Tile& t) {
  using Sum = typename By::Sum;
  Sum acc[M][1];
  begin<Sum, M, 1>(t, acc);
  const auto* w = reinterpret_cast<const float*>(t.weights);
  const char* const* inputs = t.indirection;
  for (const TapRun* s = t.tapRuns; s < t.tapRuns + t.tapRunCount;
       inputs += stride ? t.runStride : s->taps * t.tapStride, s++) {
    const bool two = s->at[lanes - 1] - s->at[0] + s->inputs > lanes;
    const bool whole = s->left >= (two ? 2 * lanes : lanes);
    if constexpr (hasOwnGroups<By> && stride > 0)
      if (s->own && whole) {
        s->inputs == 2 ? addGrouped<By, M, stride, false, true, 2>(t, *s, inputs, w, acc)
                       : addGrouped<By, M, stride, false, true, 4>(t, *s, inputs, w, acc);
        continue;
      }
    if constexpr (stride == 0 || !By::common)
      addGrouped<By, M, stride, true, false>(t, *s, inputs, w, acc);  // right for all: half as many to compile
    else if (two)
      whole ? addGrouped<By, M, stride, true, true>(t, *s, inputs, w, acc)
            : addGrouped<By, M, stride, true, false>(t, *s, inputs, w, acc);
    else
      whole ? addGrouped<By, M, stride, false, true>(t, *s, inputs, w, acc)
            : addGrouped<By, M, stride, false, false>(t, *s, inputs, w, acc);
  }
  finish<Type, Sum, M, 1>(t, acc);
}

template <int>
struct Stride {};
// Calls of() for the tile's stride.
template <class F>
OCTCONV_INLINE void byStride(const Tile& t, F&& of) {
  t.slides == 0 ? of(Stride<0>{}) : t.slides == 1 ? of(Stride<1>{}) : of(Stride<2>{});
}

template <class Type, int M>
static void depthwise(Tile& t, int64_t count) {
  byStride(t, [&]<int stride>(Stride<stride>) {
    for (; count > 0; count--, advance<M>(t, stride ? stride : 1)) oneDepthwise<Type, M, stride>(t);
  });
}

template <class Type, class By, int M>
static void grouped(Tile& t, int64_t count) {
  byStride(t, [&]<int stride>(Stride<stride>) {
    for (; count > 0; count--, advance<M>(t, stride ? stride : 1)) oneGrouped<Type, By, M, stride>(t);
  });
}

// Tiles that read elements are the same of I8 and I8Wide: compiled once.
template <class T>
struct OfElements {
  using Type = T;
};
template <>
struct OfElements<I8Wide> {
  using Type = I8;
};

// mostGrouped 8 with AVX2: on Zen 1 grouped steps take 11 % less time, Oct-ResNeXt-50 .5 %, the addon .4 MB more.
inline constexpr int mostDepthwise = 8, mostGrouped = manyRegisters ? 8 : 4;

// Tiles of 1 to M pixels.
template <class Type, int M>
static constexpr void fillAcross(TileSet& set) {
  using Elements = typename OfElements<Type>::Type;
  set.depthwise[M] = depthwise<Elements, M>;
  if constexpr (permutes && M <= mostGrouped) {
    set.grouped[M] = grouped<Elements, ByElement<Elements>, M>;
    if constexpr (hasWords<Type>) set.groupedWords[M] = grouped<Type, ByWord<Type>, M>;
  }
  if constexpr (M > 1) fillAcross<Type, M - 1>(set);
}

template <class Type, int V, int M>
static constexpr void fill(TileSet& set) {
  if constexpr (V > 0 && M == 0) {
    fill<Type, V - 1, Type::shape.maxPixels[V - 1]>(set);
  } else if constexpr (V > 0) {
    set.tiles[V][M] = tile<Type, M, V, false>;
    if constexpr (M % 4 == 0 && __is_same(typename Type::Sum, Vec)) set.pooled[V][M / 4] = tile<Type, M, V, true>;
    fill<Type, V, M - 1>(set);
  }
}

template <class Type>
static constexpr TileSet setOf() {
  constexpr TileShape shape = Type::shape;
  TileSet set{Type::words,
              Type::words == Words::u8 && I8::saturates,
              lanes,
              shape,
              {},
              {},
              mostDepthwise,
              permutes ? mostGrouped : 0,
              {},
              {},
              {}};
  fill<Type, shape.maxVectors, shape.maxPixels[shape.maxVectors]>(set);
  if constexpr (Type::words != Words::i16) fillAcross<Type, mostDepthwise>(set);
  return set;
}

#if defined(__AVX512BF16__) || defined(OCTCONV_EMULATE_BF16)
constinit const TileSet bf16Tiles = setOf<BF16>();
constinit const TileSets tileSets{avx512::f32Tiles, bf16Tiles, avx512vnni::i8Tiles, avx512::i8WideTiles,
                                  avx512vnni::i16Tiles};
#elif defined(__AVX512VNNI__) || defined(OCTCONV_EMULATE_VNNI)
constinit const TileSet i8Tiles = setOf<I8>(), i16Tiles = setOf<I16>();
constinit const TileSets tileSets{avx512::f32Tiles, avx512::bf16Tiles, i8Tiles, avx512::i8WideTiles, i16Tiles};
#else
constinit const TileSet f32Tiles = setOf<F32>(), bf16Tiles = setOf<BF16>(), i8Tiles = setOf<I8>(),
                        i8WideTiles = setOf<I8Wide>(), i16Tiles = setOf<I16>();
constinit const TileSets tileSets{f32Tiles, bf16Tiles, i8Tiles, i8WideTiles, i16Tiles};
#endif

}  // namespace octconv::OCTCONV_LEVEL
