// Data types, shapes and views. Every activation is N T H W C (T = 1 for images); a rank-2 [N, C] is N 1 1 1 C.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <ostream>

namespace octconv {

enum class DType { f32, f16, bf16, i8, u8, i32 };

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
  int64_t elements() const { return pixels() * c; }
  bool operator==(const Shape&) const = default;
};

inline std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << '[' << s.n << ',' << s.t << ',' << s.h << ',' << s.w << ',' << s.c << ']';
}

struct TensorType {
  DType dtype = DType::f32;
  Shape shape;
  size_t bytes() const { return static_cast<size_t>(shape.elements()) * bytesOf(dtype); }
};

// Height and width of P(x): 2x2 average pooling, stride 2, ceil mode.
inline int64_t half(int64_t size) { return (size + 1) / 2; }

}  // namespace octconv
