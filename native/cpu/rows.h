// Passes over rows of pixels, for each type of elements: P, and conversion from one type to another.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "../core/element.h"
#include "levels.h"

namespace octconv {

// Elements somewhere, and what they stand for: value = scale * (q - zero).
struct Elements {
  void* data;
  DType dtype;  // f32, bf16 or u8
  float scale = 1;
  int zero = 0;
};

// to = clamp(scale[c] * from + shift[c] + added, least, most); scale and shift may be null, as added.data. Pitches are
// in elements.
struct ActivatedPixels {
  Elements from;
  ptrdiff_t fromPitch;
  Elements to;
  ptrdiff_t toPitch;
  const float *scale = nullptr, *shift = nullptr;
  float least = -__builtin_inff(), most = __builtin_inff();
  Elements added{};
  ptrdiff_t addedPitch = 0;
};

}  // namespace octconv

// P(x) of a piece of a plane: 2x2 average pooling, stride 2, ceil mode, borders averaged over what exists.
// in: rows x width pixels, `inPitch` elements from pixel to pixel; out: half(rows) x half(width) pixels, `outPitch`
// elements apart; `channels` of each. A mean is ((a + b) + (c + d)) / 4 or (a + b) / 2 in f32, rounded to the nearest
// element, so that it is the same for any cut.
OCTCONV_DECLARE(void halveRows(DType dtype, const void* in, ptrdiff_t inPitch, int64_t rows, int64_t width, void* out,
                               ptrdiff_t outPitch, int channels))
// The same numbers as elements of another type.
OCTCONV_DECLARE(void convertElements(const Elements& from, const Elements& to, ptrdiff_t count))
// sums[c] = the sum of `channels` channels of some pixels, as values.
OCTCONV_DECLARE(void sumPixels(const Elements& from, ptrdiff_t fromPitch, float* sums, ptrdiff_t pixels,
                               ptrdiff_t channels))
OCTCONV_DECLARE(void activatePixels(const ActivatedPixels& by, ptrdiff_t pixels, ptrdiff_t channels))
