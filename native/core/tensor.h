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

inline float floatOf(Float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31, mantissa = x.bits & 0x3ffu;
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1p-24f;  // zero and subnormal numbers
    return sign ? -value : value;
  }
  const uint32_t word = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
// The same rounding; what rounds to more than 65504 becomes infinity.
inline Float16 float16Of(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  const uint32_t sign = word >> 16 & 0x8000, size = word & 0x7fffffff;
  uint32_t bits;
  if (std::isnan(x)) {
    bits = 0x7e00;
  } else if (size < 0x38800000) {  // below 2^-14: a multiple of 2^-24
    bits = static_cast<uint32_t>(std::nearbyint(std::fabs(x) * 0x1p24f));
  } else if (size < 0x477ff000) {
    bits = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
  } else {
    bits = 0x7c00;
  }
  return {static_cast<uint16_t>(sign | bits)};
}

// A number as it is when it is kept as a type.
inline float roundedTo(DType dtype, float x) {
  return dtype == DType::bf16 ? floatOf(bfloat16Of(x)) : dtype == DType::f16 ? floatOf(float16Of(x)) : x;
}

// Element i as a number, what it stands for, and back, rounded to the nearest: the slow way, for references. f32, f16,
// bf16 and u8. Of a type, elements are counted without the gaps.
inline float elementAt(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::bf16) return floatOf(static_cast<const BFloat16*>(data)[i]);
  if (dtype == DType::f16) return floatOf(static_cast<const Float16*>(data)[i]);
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
  } else if (type.dtype == DType::f16) {
    static_cast<Float16*>(data)[i] = float16Of(x);
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
