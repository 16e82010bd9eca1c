#include "halve.h"

#include "vec.h"

namespace octconv::OCTCONV_LEVEL {

// The mean of the pixels at a, a + right, a + down and a + right + down; a distance is 0 where there is none.
OCTCONV_INLINE Vec mean(const float* a, ptrdiff_t right, ptrdiff_t down, Vec share, int count) {
  const auto at = [count](const float* p) { return count == lanes ? load(p) : load(p, count); };
  if (right && down) return ((at(a) + at(a + right)) + (at(a + down) + at(a + down + right))) * share;
  return right || down ? (at(a) + at(a + right + down)) * share : at(a);
}

void halveRows(const float* in, ptrdiff_t inPitch, int64_t rows, int64_t width, float* out, ptrdiff_t outPitch,
               int channels) {
  for (int64_t y = 0; y < rows; y += 2)
    for (int64_t x = 0; x < width; x += 2, out += outPitch) {
      const float* a = in + (y * width + x) * inPitch;
      const ptrdiff_t right = x + 1 < width ? inPitch : 0, down = y + 1 < rows ? width * inPitch : 0;
      const Vec share = splat(right && down ? 0.25f : 0.5f);
      int c = 0;
      for (; c + lanes <= channels; c += lanes) store(out + c, mean(a + c, right, down, share, lanes));
      if (c < channels) store(out + c, mean(a + c, right, down, share, channels - c), channels - c);
    }
}

}  // namespace octconv::OCTCONV_LEVEL
