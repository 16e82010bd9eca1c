// The transforms of Winograd's minimal filtering F(O x O, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", arXiv 1509.09308) for O of 2 or 4: a tile of O x O outputs takes (O + 2)^2 products per pair of
// channels instead of 9 O^2. Points 0, 1, -1 (and 2, -2), as in the paper.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "../core/element.h"
#include "levels.h"

namespace octconv {

struct WinogradInput {
  DType dtype;                // f32 or bf16
  const char* const* pixels;  // of the (O + 2)^2 inputs of a tile, row by row; `pixelStride` pointers apart
  ptrdiff_t pixelStride;
  int64_t channels;
  float* to;  // channels of position 0; `positionStride` floats to those of the next one
  ptrdiff_t positionStride;
};

struct WinogradOutput {
  const float* from;  // sums of position 0; `positionStride` floats to those of the next one
  ptrdiff_t positionStride;
  int rows, columns;   // how many of the O x O outputs there are
  const float* bias;   // per channel, or null
  const float* start;  // what is added (the upsampled low product), or null: of output (y, x) at
  ptrdiff_t startRow;  //   (y / 2) * startRow + (x / 2) * startPitch
  ptrdiff_t startPitch;
  DType dtype;           // of residual and `to`: f32 or bf16
  const void* residual;  // added before the clamp, laid out as `to`, or null
  void* to;
  ptrdiff_t row, pitch;  // elements to the next row and pixel
  int64_t channels;
  float low, high;
};

}  // namespace octconv

OCTCONV_DECLARE(void winogradInput2(const WinogradInput& tile))
OCTCONV_DECLARE(void winogradInput4(const WinogradInput& tile))
OCTCONV_DECLARE(void winogradOutput2(const WinogradOutput& tile))
OCTCONV_DECLARE(void winogradOutput4(const WinogradOutput& tile))
