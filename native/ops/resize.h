// The geometry of resize (resize.cc) and how it weighs pixels: the same on the host and in kernels to the last bit, so
// no product becomes part of a fused multiply-add.
#pragma once
#include <math.h>

#include "../cuda/sides.h"

namespace octconv {

struct ResizeFilter {
  double support;
  double a;  // of a bicubic filter; 0: bilinear
  bool antialias;
};

// Pixels [begin, begin + count) of an axis of `from` pixels that is resized. They are made of `size` pixels from
// `start` on, each of at most `pitch` of them.
struct ResizeAxis {
  int64_t from, begin, count;
  double scale, stretch;
  ResizeFilter filter;
  int64_t pitch, start, size;

  // What a pixel is made of: [low, high). Its window is [begins, ends); what lies beyond the border is the border's.
  struct Window {
    int64_t begins, ends, low, high;
    double centre;
  };

  OCTCONV_BOTH Window window(int64_t i) const {
    const double centre = times(static_cast<double>(begin + i) + 0.5, scale), support = times(filter.support, stretch);
    Window w{static_cast<int64_t>(floor(centre - support + 0.5)), static_cast<int64_t>(floor(centre + support + 0.5)),
             0, 0, centre};
    w.low = within(w.begins, 0, from - 1), w.high = within(w.ends, w.low + 1, from);
    if (filter.antialias) w.begins = w.low, w.ends = w.high;  // Pillow leaves out what lies beyond
    return w;
  }

  // Calls put(k, weight) for each pixel low + k.
  template <class Put>
  OCTCONV_BOTH void weigh(const Window& w, int fractionBits, Put&& put) const {
    double sum = 0;
    for (int64_t p = w.begins; p < w.ends; p++) sum += weight(w, p);
    for (int64_t p = w.low; p < w.high; p++) {
      const int64_t first = p == w.low ? w.begins : p, last = p + 1 == w.high ? w.ends : p + 1;
      double exact = 0;
      for (int64_t q = first; q < last; q++) exact += weight(w, q);
      put(p - w.low, static_cast<int32_t>(round(exact / sum * (1 << fractionBits))));
    }
  }

 private:
  static OCTCONV_BOTH int64_t within(int64_t x, int64_t least, int64_t most) {
    return x < least ? least : x > most ? most : x;
  }
  static OCTCONV_BOTH double times(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
  }
  OCTCONV_BOTH double weight(const Window& w, int64_t p) const {
    const double x = fabs(times(static_cast<double>(p) - w.centre + 0.5, 1 / stretch)), a = filter.a;
    if (a == 0) return x < 1 ? 1 - x : 0;
    if (x < 1) return times(times(times(a + 2, x) - (a + 3), x), x) + 1;
    if (x < 2) return times(times(times(x - 5, x) + 8, x) - 4, a);
    return 0;
  }
};

template <class Axis>
struct ResizeGeometry {
  int64_t pictures, height, width, outHeight, outWidth;
  bool downFirst;
  Axis down, across;
  int64_t pictureIn() const { return height * width * 3; }  // bytes
  int64_t pictureOut() const { return outHeight * outWidth * 3; }
  int64_t start() const { return (down.start * width + across.start) * 3; }  // what is read begins here
  int64_t between() const { return 3 * (downFirst ? outHeight * across.size : down.size * outWidth); }
};

struct Node;
ResizeGeometry<ResizeAxis> resizeGeometryOf(const Node& node);  // throws what is wrong with it

}  // namespace octconv
