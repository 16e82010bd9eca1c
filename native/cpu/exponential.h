// exp of vectors, for kernels of every level.
#pragma once
#include "vec.h"

namespace octconv::OCTCONV_LEVEL {

// Within 2 units of the last place; 0 below -87.3, infinite above 88.3. 2^n times a polynomial of Cephes' expf.
OCTCONV_INLINE Vec exponential(Vec x) {
  const Vec magic = splat(0x1.8p23f), shifted = x * splat(1.44269504f) + magic, n = shifted - magic;
  const Vec r = x - n * splat(0.693359375f) + n * splat(2.12194440e-4f);
  static constexpr float factors[] = {
      1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1, 1};
  Vec y = splat(1.9875691500e-4f);
  for (const float factor : factors) y = y * r + splat(factor);
  y *= (Vec)(((Bits)shifted << 23) + splatBits(127u << 23));
  y = x < splat(-87.3f) ? Vec{} : y;
  return x > splat(88.3f) ? splat(__builtin_inff()) : y;
}

}  // namespace octconv::OCTCONV_LEVEL
