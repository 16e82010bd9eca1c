#include "rows.h"

#include "vec.h"

namespace octconv::OCTCONV_LEVEL {

OCTCONV_INLINE Vec mean(Vec a, Vec b) { return (a + b) * 0.5f; }
OCTCONV_INLINE Vec mean(Vec a, Vec b, Vec c, Vec d) { return ((a + b) + (c + d)) * 0.25f; }
// To the nearest, to even between two, as f32 are rounded.
OCTCONV_INLINE Shorts mean(Shorts a, Shorts b) {
  const Shorts sum = a + b;
  return (sum + (sum >> 1 & 1)) >> 1;
}
OCTCONV_INLINE Shorts mean(Shorts a, Shorts b, Shorts c, Shorts d) {
  const Shorts sum = a + b + c + d;
  return (sum + 1 + (sum >> 2 & 1)) >> 2;
}

template <class T>
static void halve(const T* in, ptrdiff_t inPitch, int64_t rows, int64_t width, T* out, ptrdiff_t outPitch,
                  int channels) {
  for (int64_t y = 0; y < rows; y += 2)
    for (int64_t x = 0; x < width; x += 2, out += outPitch) {
      // A distance is 0 where there is no pixel.
      const ptrdiff_t right = x + 1 < width ? inPitch : 0, down = y + 1 < rows ? width * inPitch : 0;
      for (int c = 0; c < channels; c += elements<T>) {
        const T* a = in + (y * width + x) * inPitch + c;
        const int count = channels - c < elements<T> ? channels - c : elements<T>;
        const auto at = [count](const T* p) { return widened(p, count); };
        if (right && down)
          narrow(out + c, mean(at(a), at(a + right), at(a + down), at(a + down + right)), count);
        else if (right || down)
          narrow(out + c, mean(at(a), at(a + right + down)), count);
        else
          narrow(out + c, at(a), count);
      }
    }
}

void halveRows(DType dtype, const void* in, ptrdiff_t inPitch, int64_t rows, int64_t width, void* out,
               ptrdiff_t outPitch, int channels) {
  const auto as = [&](auto element) {
    using T = decltype(element);
    halve(static_cast<const T*>(in), inPitch, rows, width, static_cast<T*>(out), outPitch, channels);
  };
  if (dtype == DType::f32) as(float{});
  if (dtype == DType::bf16) as(BFloat16{});
  if (dtype == DType::u8) as(uint8_t{});
}

template <class From, class To>
static void convert(const From* from, To* to, float fromZero, float scale, float toZero, ptrdiff_t count) {
  const Vec zero = splat(fromZero), factor = splat(scale), addend = splat(toZero), most = splat(255);
  const auto converted = [&](Vec x) {
    x = (x - zero) * factor + addend;  // what stands for 0 becomes 0
    return sizeof(To) == 1 ? clamp(x, Vec{}, most) : x;
  };
  ptrdiff_t i = 0;
  for (; i + lanes <= count; i += lanes) store(to + i, converted(load(from + i)));
  const int left = static_cast<int>(count - i);
  if (left) store(to + i, converted(load(from + i, left)), left);
}

void convertElements(const Elements& from, const Elements& to, ptrdiff_t count) {
  // q' = (scale (q - zero)) / scale' + zero'
  const float fromZero = static_cast<float>(from.zero), scale = from.scale / to.scale,
              toZero = static_cast<float>(to.zero);
  const auto into = [&](const auto* elements) {
    if (to.dtype == DType::f32) convert(elements, static_cast<float*>(to.data), fromZero, scale, toZero, count);
    if (to.dtype == DType::bf16) convert(elements, static_cast<BFloat16*>(to.data), fromZero, scale, toZero, count);
    if (to.dtype == DType::u8) convert(elements, static_cast<uint8_t*>(to.data), fromZero, scale, toZero, count);
  };
  if (from.dtype == DType::f32) into(static_cast<const float*>(from.data));
  if (from.dtype == DType::bf16) into(static_cast<const BFloat16*>(from.data));
  if (from.dtype == DType::u8) into(static_cast<const uint8_t*>(from.data));
}

template <class From>
static void sum(const Elements& from, ptrdiff_t pitch, float* sums, ptrdiff_t pixels, ptrdiff_t channels) {
  const Vec factor = splat(from.scale), zeros = splat(static_cast<float>(from.zero) * static_cast<float>(pixels));
  const auto* first = static_cast<const From*>(from.data);
  const auto end = [&](Vec all) { return (all - zeros) * factor; };
  ptrdiff_t c = 0;
  for (; c + 4 * lanes <= channels; c += 4 * lanes) {
    Vec all[4]{};
    for (ptrdiff_t p = 0; p < pixels; p++)
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) all[i] += load(first + p * pitch + c + i * lanes);
    for (int i = 0; i < 4; i++) store(sums + c + i * lanes, end(all[i]));
  }
  for (; c < channels; c += lanes) {
    const int count = channels - c < lanes ? static_cast<int>(channels - c) : lanes;
    Vec all{};
    for (ptrdiff_t p = 0; p < pixels; p++) {
      const From* x = first + p * pitch + c;
      all += count == lanes ? load(x) : load(x, count);
    }
    store(sums + c, end(all), count);
  }
}

void sumPixels(const Elements& from, ptrdiff_t pitch, float* sums, ptrdiff_t pixels, ptrdiff_t channels) {
  if (from.dtype == DType::f32) sum<float>(from, pitch, sums, pixels, channels);
  if (from.dtype == DType::bf16) sum<BFloat16>(from, pitch, sums, pixels, channels);
  if (from.dtype == DType::u8) sum<uint8_t>(from, pitch, sums, pixels, channels);
}

OCTCONV_INLINE Vec loadAny(const Elements& from, ptrdiff_t at, int count) {
  const auto as = [&](const auto* x) { return count == lanes ? load(x + at) : load(x + at, count); };
  if (from.dtype == DType::f32) return as(static_cast<const float*>(from.data));
  if (from.dtype == DType::bf16) return as(static_cast<const BFloat16*>(from.data));
  return as(static_cast<const uint8_t*>(from.data));
}

// `batchNorm`: there are a scale and a shift, and nothing is added, as almost always.
template <class From, class To, bool batchNorm>
static void activate(const ActivatedPixels& by, ptrdiff_t pixels, ptrdiff_t channels) {
  // A copy: a store could change the original, whose members would be loaded again for each vector.
  const auto [from, fromPitch, to, toPitch, scale, shift, least, most, added, addedPitch] = by;
  const Vec low = splat(least), high = splat(most), steps = splat(1 / to.scale),
            zero = splat(static_cast<float>(to.zero));
  const Vec offset = added.data ? splat(added.scale * static_cast<float>(added.zero)) : Vec{};
  // Pixel by pixel: vector by vector, lines that a power of two lies between share few sets of the cache (2.5 times the
  // time for rows of 184 of 256 channels).
  for (ptrdiff_t p = 0; p < pixels; p++) {
    const From* x = static_cast<const From*>(from.data) + p * fromPitch;
    To* y = static_cast<To*>(to.data) + p * toPitch;
    const auto some = [&](ptrdiff_t c, int count) {
      const bool whole = count == lanes;
      const auto at = [&](const auto* of) { return whole ? load(of + c) : load(of + c, count); };
      Vec factor = batchNorm || scale ? at(scale) : splat(1), addend = batchNorm || shift ? at(shift) : Vec{};
      if constexpr (sizeof(From) == 1) factor *= splat(from.scale);
      if constexpr (!batchNorm) addend -= offset;
      Vec v = at(x);
      if constexpr (sizeof(From) == 1)
        v -= splat(static_cast<float>(from.zero));  // not later: a factor may be infinite
      v = multiplyAdd(v, factor, addend);
      if (!batchNorm && added.data) v = multiplyAdd(loadAny(added, p * addedPitch + c, count), splat(added.scale), v);
      v = clamp(v, low, high);
      if constexpr (sizeof(To) == 1) v = clamp(v * steps + zero, Vec{}, splat(255));
      whole ? store(y + c, v) : store(y + c, v, count);
    };
    ptrdiff_t c = 0;
    for (; c + lanes <= channels; c += lanes) some(c, lanes);
    if (c < channels) some(c, static_cast<int>(channels - c));
  }
}

void activatePixels(const ActivatedPixels& by, ptrdiff_t pixels, ptrdiff_t channels) {
  const DType from = by.from.dtype, to = by.to.dtype;
  const bool batchNorm = by.scale && by.shift && !by.added.data;
  const auto as = [&](auto x, auto y) {
    batchNorm ? activate<decltype(x), decltype(y), true>(by, pixels, channels)
              : activate<decltype(x), decltype(y), false>(by, pixels, channels);
  };
  const auto into = [&](auto x) {
    if (to == DType::f32) as(x, float{});
    if (to == DType::bf16) as(x, BFloat16{});
    if (to == DType::u8) as(x, uint8_t{});
  };
  if (from == DType::f32) into(float{});
  if (from == DType::bf16) into(BFloat16{});
  if (from == DType::u8) into(uint8_t{});
}

}  // namespace octconv::OCTCONV_LEVEL
