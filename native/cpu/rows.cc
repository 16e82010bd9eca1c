#include "rows.h"

#include "vec.h"

namespace octconv::OCTCONV_LEVEL {

// The mean of the pixels at a, a + right, a + down and a + right + down; a distance is 0 where there is none.
template <class T>
OCTCONV_INLINE Vec mean(const T* a, ptrdiff_t right, ptrdiff_t down, Vec share, int count) {
  const auto at = [count](const T* p) { return count == lanes ? load(p) : load(p, count); };
  if (right && down) return ((at(a) + at(a + right)) + (at(a + down) + at(a + down + right))) * share;
  return right || down ? (at(a) + at(a + right + down)) * share : at(a);
}

template <class T>
static void halve(const T* in, ptrdiff_t inPitch, int64_t rows, int64_t width, T* out, ptrdiff_t outPitch,
                  int channels) {
  for (int64_t y = 0; y < rows; y += 2)
    for (int64_t x = 0; x < width; x += 2, out += outPitch) {
      const T* a = in + (y * width + x) * inPitch;
      const ptrdiff_t right = x + 1 < width ? inPitch : 0, down = y + 1 < rows ? width * inPitch : 0;
      const Vec share = splat(right && down ? 0.25f : 0.5f);
      int c = 0;
      for (; c + lanes <= channels; c += lanes) store(out + c, mean(a + c, right, down, share, lanes));
      if (c < channels) store(out + c, mean(a + c, right, down, share, channels - c), channels - c);
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
static void convert(const From* from, To* to, float scale, float shift, ptrdiff_t count) {
  const Vec factor = splat(scale), addend = splat(shift);
  ptrdiff_t i = 0;
  for (; i + lanes <= count; i += lanes) store(to + i, load(from + i) * factor + addend);
  const int left = static_cast<int>(count - i);
  if (left) store(to + i, load(from + i, left) * factor + addend, left);
}

void convertElements(const Elements& from, const Elements& to, ptrdiff_t count) {
  // scale and shift of q' = (scale (q - zero)) / scale' + zero'
  const float scale = from.scale / to.scale,
              shift = static_cast<float>(to.zero) - scale * static_cast<float>(from.zero);
  const auto into = [&](const auto* elements) {
    if (to.dtype == DType::f32) convert(elements, static_cast<float*>(to.data), scale, shift, count);
    if (to.dtype == DType::bf16) convert(elements, static_cast<BFloat16*>(to.data), scale, shift, count);
    if (to.dtype == DType::u8) convert(elements, static_cast<uint8_t*>(to.data), scale, shift, count);
  };
  if (from.dtype == DType::f32) into(static_cast<const float*>(from.data));
  if (from.dtype == DType::bf16) into(static_cast<const BFloat16*>(from.data));
  if (from.dtype == DType::u8) into(static_cast<const uint8_t*>(from.data));
}

}  // namespace octconv::OCTCONV_LEVEL
