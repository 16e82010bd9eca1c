// Activations as kernels see them: [N, T, H, W, C] in a run's arena.
#pragma once
#include "../core/element.h"
#include "sides.h"

namespace octconv::cuda {

struct Extent {
  int t, h, w;
};

struct TensorArgs {
  int64_t at;  // bytes from the arena's begin, so that all runs of a plan have the same arguments
  Extent size;
  int channels, pad, pitch;  // elements; behind the channels of a pixel lie `pad` zeros
  DType dtype;               // f32, f16 or bf16, where a kernel computes with elements
};

}  // namespace octconv::cuda

#if OCTCONV_KERNELS
#include "intrinsics.h"

namespace octconv::cuda {

// Two elements of f16 or bf16 in a word, `low` in its low half, which unpacked() gives.
OCTCONV_DEVICE uint32_t packed(DType dtype, float low, float high) {
  return dtype == DType::f16 ? packF16(low, high) : packBf16(low, high);
}
OCTCONV_DEVICE float unpacked(DType dtype, uint32_t word) {
  return dtype == DType::f16 ? floatOfF16(static_cast<uint16_t>(word)) : floatOfBits(word << 16);
}

OCTCONV_DEVICE float elementOf(const char* arena, const TensorArgs& x, int64_t i) {
  if (x.dtype == DType::f32) return reinterpret_cast<const float*>(arena + x.at)[i];
  return unpacked(x.dtype, reinterpret_cast<const uint16_t*>(arena + x.at)[i]);
}
OCTCONV_DEVICE void setElement(char* arena, const TensorArgs& x, int64_t i, float value) {
  if (x.dtype == DType::f32) {
    reinterpret_cast<float*>(arena + x.at)[i] = value;
  } else {
    reinterpret_cast<uint16_t*>(arena + x.at)[i] = static_cast<uint16_t>(packed(x.dtype, value, 0));
  }
}
// A number as it is when it is kept.
OCTCONV_DEVICE float roundedTo(DType dtype, float x) {
  return dtype == DType::f32 ? x : unpacked(dtype, packed(dtype, x, 0));
}

struct Pixel {
  int frame;  // n * T + t; negative: there is none
  int y, x;
};

// Pixel `index` of n images or videos in row-major order.
OCTCONV_DEVICE Pixel pixelAt(unsigned index, int n, const Extent& size) {
  const unsigned row = index / size.w, frame = row / size.h;
  return {frame < static_cast<unsigned>(n) * size.t ? static_cast<int>(frame) : -1,
          static_cast<int>(row - frame * size.h), static_cast<int>(index - row * size.w)};
}

OCTCONV_DEVICE int64_t elementAt(const TensorArgs& tensor, const Pixel& p, int channel) {
  const int64_t pixel = (static_cast<int64_t>(p.frame) * tensor.size.h + p.y) * tensor.size.w + p.x;
  return pixel * tensor.pitch + channel;
}

}  // namespace octconv::cuda

#else
#include "../core/attrs.h"
#include "../core/tensor.h"

namespace octconv::cuda {

// Of what a kernel takes; who knows the step names it.
struct TooLarge : Error {
  using Error::Error;
};
inline int atMost(int64_t most, int64_t x, const char* what) {
  if (x > most)
    throw TooLarge(std::to_string(x) + " " + what + " are too many for cuda, wanted at most " + std::to_string(most));
  return static_cast<int>(x);
}
inline int intOf(int64_t x, const char* what) { return atMost(INT32_MAX, x, what); }

inline Extent extentOf(const Size3& size) {
  return {intOf(size.t, "frames"), intOf(size.h, "rows"), intOf(size.w, "columns")};
}

// Whether the channels of a pixel can be copied in pieces of 16 bytes as they lie: all of these are its own or zeros.
inline bool hasWholePieces(const TensorType& type, int64_t at) {
  const auto bytes = static_cast<int64_t>(bytesOf(type.dtype));
  return type.pitch() * bytes % 16 == 0 && (type.shape.c + type.pad) * bytes % 16 == 0 && at % 16 == 0;
}

inline TensorArgs tensorOf(const TensorType& type, int64_t at) {
  const Shape& s = type.shape;
  intOf(s.pixels(), "pixels");
  return {at,
          extentOf({s.t, s.h, s.w}),
          intOf(s.c, "channels"),
          static_cast<int>(type.pad),
          intOf(type.pitch(), "elements from pixel to pixel"),
          type.dtype};
}

}  // namespace octconv::cuda
#endif
