// Elements of any type as f32, for kernels that compute in f32. f32 is read and written where it lies.
#pragma once
#include "kernel.h"
#include "rows.h"

namespace octconv {

// The same from the i-th element on.
inline Elements from(const Elements& x, int64_t i) {
  Elements moved = x;
  moved.data = static_cast<char*>(x.data) + i * static_cast<int64_t>(bytesOf(x.dtype));
  return moved;
}

struct Floats {
  TensorType type;
  decltype(&baseline::convertElements) convert = OCTCONV_PICK(convertElements);

  explicit Floats(const TensorType& type) : type(type) {}
  Elements elements(void* data, int64_t at) const { return from({data, type.dtype, type.scale, type.zero}, at); }
  // Elements from `at` on; `room` holds as many.
  const float* read(void* data, int64_t at, int64_t count, float* room) const {
    if (type.dtype == DType::f32) return static_cast<const float*>(data) + at;
    convert(elements(data, at), {room, DType::f32}, count);
    return room;
  }
  // Where results go before `write`.
  float* target(void* data, int64_t at, float* room) const {
    return type.dtype == DType::f32 ? static_cast<float*>(data) + at : room;
  }
  void write(void* data, int64_t at, int64_t count, float* room) const {
    if (type.dtype != DType::f32) convert({room, DType::f32}, elements(data, at), count);
  }
};

constexpr int64_t mostInOneSum = 64;  // of f32

// sums[c] += channels of pixels that lie together, `pitch` elements apart. Some pixels are summed up in f32, these sums
// in double: a million equal numbers in one f32 lose 1 %.
inline void addPixels(const Elements& x, int64_t pitch, int64_t pixels, int64_t channels, double* sums) {
  const auto sum = OCTCONV_PICK(sumPixels);
  float some[mostInOneSum];
  for (int64_t c = 0; c < channels; c += mostInOneSum)
    for (int64_t p = 0; p < pixels; p += mostInOneSum) {
      const int64_t count = std::min(mostInOneSum, channels - c);
      sum(from(x, p * pitch + c), pitch, some, std::min(mostInOneSum, pixels - p), count);
      for (int64_t i = 0; i < count; i++) sums[c + i] += static_cast<double>(some[i]);
    }
}

// `anyFloats`: the types of `Floats`. `anyElements`: of the reference, and of kernels that only move elements.
inline const std::vector<DType> anyFloats = {DType::f32, DType::bf16, DType::u8};
inline const std::vector<DType> anyElements = {DType::f32, DType::f16, DType::bf16, DType::u8};

// Calls `f` with an element of the size of a type.
template <class F>
void bySize(DType dtype, const F& f) {
  switch (bytesOf(dtype)) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    default:
      return f(uint32_t{});
  }
}

}  // namespace octconv
