// Data types and shapes. Every activation is N T H W C (T = 1 for images); a rank-2 [N, C] is N 1 1 1 C.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ostream>

#include "element.h"
#include "sizes.h"

namespace octconv {

inline constexpr size_t bytesOf(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::i8:
    case DType::u8:
      return 1;
  }
  return 0;
}

inline const char* nameOf(DType dtype) {
  static constexpr const char* names[] = {"f32", "f16", "bf16", "i8", "u8", "i32"};
  return names[static_cast<int>(dtype)];
}

struct Shape {
  int64_t n = 1, t = 1, h = 1, w = 1, c = 1;

  int64_t rows() const { return n * t * h; }
  int64_t pixels() const { return rows() * w; }
  int64_t elements() const { return product(n, t, h, w, c); }
  bool operator==(const Shape&) const = default;
};

inline std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << '[' << s.n << ',' << s.t << ',' << s.h << ',' << s.w << ',' << s.c << ']';
}

// Elements q of u8 stand for scale * (q - zero); those of other types for themselves.
struct TensorType {
  DType dtype = DType::f32;
  Shape shape;
  float scale = 1;
  int zero = 0;
  int64_t gap = 0;  // elements between pixels that are no channels
  int64_t pad = 0;  // the first of these, zeros that go with the value; the others are of a wider one that it lies in

  int64_t pitch() const { return sum(shape.c, gap); }  // elements from pixel to pixel
  size_t stride() const {                              // bytes to the next one
    return static_cast<size_t>(product(product(shape.elements() / shape.c, pitch()), bytesOf(dtype)));
  }
  size_t bytes() const { return stride() - static_cast<size_t>(gap - pad) * bytesOf(dtype); }  // to its end
  // Where element i lies, in elements.
  int64_t at(int64_t i) const { return gap ? i / shape.c * pitch() + i % shape.c : i; }
};

inline float floatOf(BFloat16 x) {
  const uint32_t word = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
// To the nearest, to even between two; a NaN stays one.
inline BFloat16 bfloat16Of(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  if (std::isnan(x)) return {0x7fc0};
  return {static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16)};
}

// Element i as a number, what it stands for, and back, rounded to the nearest: the slow way, for references. f32, bf16
// and u8. Of a type, elements are counted without the gaps.
inline float elementAt(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::bf16) return floatOf(static_cast<const BFloat16*>(data)[i]);
  if (dtype == DType::u8) return static_cast<const uint8_t*>(data)[i];
  return static_cast<const float*>(data)[i];
}
inline float valueOf(float element, const TensorType& type) {
  return type.dtype == DType::u8 ? type.scale * (element - static_cast<float>(type.zero)) : element;
}
inline float valueAt(const void* data, const TensorType& type, int64_t i) {
  return valueOf(elementAt(data, type.dtype, type.at(i)), type);
}
inline void setValue(void* data, const TensorType& type, int64_t i, float x) {
  i = type.at(i);
  if (type.dtype == DType::bf16) {
    static_cast<BFloat16*>(data)[i] = bfloat16Of(x);
  } else if (type.dtype == DType::u8) {
    const float q = x / type.scale + static_cast<float>(type.zero);
    static_cast<uint8_t*>(data)[i] = static_cast<uint8_t>(q > 0 ? std::nearbyint(q < 255 ? q : 255) : 0);
  } else {
    static_cast<float*>(data)[i] = x;
  }
}

// Height and width of P(x): 2x2 average pooling, stride 2, ceil mode.
inline int64_t half(int64_t size) { return (size + 1) / 2; }

// A pixel of P(x), counted through all planes, where borders are averaged over what exists; at(pixel) gives the
// elements of x. The slow way, for references.
template <class At>
double pooledAt(const Shape& x, int64_t pixel, At&& at) {
  const int64_t h = half(x.h), w = half(x.w), plane = pixel / (w * h), top = pixel / w % h * 2, left = pixel % w * 2;
  double sum = 0;
  int count = 0;
  for (int64_t row = top; row < std::min(x.h, top + 2); row++)
    for (int64_t column = left; column < std::min(x.w, left + 2); column++, count++)
      sum += at((plane * x.h + row) * x.w + column);
  return sum / count;
}

}  // namespace octconv
