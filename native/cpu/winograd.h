// The transforms of Winograd's minimal filtering F(O x O, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", arXiv 1509.09308) for O of 2 or 4: a tile of O x O outputs takes (O + 2)^2 products per pair of
// channels instead of 9 O^2. Points 0, 1, -1 (and 2, -2), as in the paper.
//
// Of integers both are exact: inputs of u8 become i16 of at most 68 * 255; weights of i8 become whole numbers if they
// are multiplied, of F(2 x 2) by 4, of F(4 x 4) by up to 144, and are i16 too; sums are i32 modulo 2^32, and 4 or 576 =
// 9 * 64 times what they should be.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "epilogue.h"
#include "levels.h"

namespace octconv {

// Of integers, so many input channels may be summed up, each of 9 products of at most 255 * 128: of the 32 bits of a
// sum 30 remain after the division by 4, and 26 after that by 64.
inline constexpr int64_t winogradChannels(int64_t outputs) {
  return (int64_t{1} << (outputs == 2 ? 29 : 25)) / (9 * 255 * 128);
}

// The same along T alone, F(4, 3), F(2, 5) and F(4, 5): a tile takes 6 products instead of 12 or 10, or 8 instead
// of 20. F(4, 5) has the points 1/2 and -1/2 too, and errs 2.3 times as much as direct convolution (measured in f32).
// F(4, 3) and F(2, 5) are exact in integers: sums are 24 times as large, and 8 times what is left must fit into 32
// bits, which bounds how many products of u8 and i8 are summed up.
inline constexpr int64_t overTimeProducts = (int64_t{1} << 28) / (255 * 128);

struct OverTimeInput {
  DType dtype;    // f32, bf16 or u8
  int positions;  // 6 or 8
  const char*
      planes[8];       // by position: an input's elements; outside of the clip some elements that hold the zero point
  ptrdiff_t steps[8];  // 1, or 0 outside
  int64_t count;       // of elements
  char* to;            // f32, of u8 i16: elements of position 0; `positionStride` bytes to those of the next one
  ptrdiff_t positionStride;
};

struct WinogradInput {
  DType dtype;                // f32, bf16 or u8
  const char* const* pixels;  // of the (O + 2)^2 inputs of a tile, row by row; `pixelStride` pointers apart
  ptrdiff_t pixelStride;
  int64_t channels;
  char* to;  // f32, of u8 i16: channels of position 0; `positionStride` bytes to those of the next one
  ptrdiff_t positionStride;
};

struct WinogradOutput : Epilogue {  // residual and `out` are of one type: f32, bf16, or of integers u8
  bool integers;                    // whether sums are i32 instead of f32
  const char* from;                 // sums of position 0; `positionStride` of them to those of the next one
  ptrdiff_t positionStride;
  int rows, columns;   // how many of the O x O outputs there are
  const char* start;   // sums that are added (the upsampled low product), or null: of output (y, x) at
  ptrdiff_t startRow;  //   (y / 2) * startRow + (x / 2) * startPitch
  ptrdiff_t startPitch;
  bool raw;                    // the sums themselves are stored, without the epilogue
  ptrdiff_t row, residualRow;  // elements to the next row
};

}  // namespace octconv

OCTCONV_DECLARE(void winogradInput2(const WinogradInput& tile))
OCTCONV_DECLARE(void winogradInput4(const WinogradInput& tile))
OCTCONV_DECLARE(void winogradOutput2(const WinogradOutput& tile))
OCTCONV_DECLARE(void winogradOutput4(const WinogradOutput& tile))
OCTCONV_DECLARE(void overTimeInput(const OverTimeInput& tile))
// Of `pixels` pixels, whose sums lie `pixelStride` apart; `rows` of the tile's `outputs`, `row` elements apart, are
// there.
OCTCONV_DECLARE(void overTimeOutput(const WinogradOutput& tile, int positions, int outputs, int64_t pixels,
                                    int64_t pixelStride))
