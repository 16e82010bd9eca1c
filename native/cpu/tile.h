// The register tile of a convolution: M pixels x V vectors of output channels, kept in registers over the whole sum.
//
// A convolution reads its input through an indirection buffer (as in XNNPACK): for every tap and pixel the address of
// the input channels that the tap multiplies, or of zeros where the tap falls outside. Stride, padding, dilation, odd
// borders and sums over several sources are then all the same loop.
//
// The loop goes over WORDS of 32 bits of input: one f32, two bf16 or four u8. A word of each pixel is spread over a
// vector, and multiplied with a word of each output channel into its 32-bit sum. So one skeleton serves all data types,
// as do the dot products that some CPUs have: two bf16 or four bytes to a lane.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "epilogue.h"
#include "levels.h"

namespace octconv {

// Taps, one after the other, that read equally many channels.
struct TapRun {
  int64_t taps;
  ptrdiff_t bytes;   // whole words of channels a tap multiplies; across groups: not used
  ptrdiff_t offset;  // of the group's first channel, in bytes; across groups: of the panel's first input
  // Across groups: the first input of each output channel of the panel, as many as lanes, how many each has, and how
  // many the pixel has from the panel's first one on; of words where tiles take words.
  const int32_t* at = nullptr;
  int64_t inputs = 1, left = 0;
  bool own = false;  // each group has 2 or 4 inputs and as many outputs, and the panel begins with a group
};

struct Tile : Epilogue {           // bias and scale of V * lanes channels, of which `channels` are stored
  const char* const* indirection;  // [tap][pixel], `tapStride` pointers from tap to tap
  ptrdiff_t tapStride;
  // Across groups: the stride of a sum whose taps are rows of 3 neighbours, or 0. Tap k of pixel m reads what pointer
  // m * slides + k of a row says; `tapStride` goes from row to row of taps, `runStride` from run to run.
  int slides;
  ptrdiff_t runStride;
  const TapRun* tapRuns;
  size_t tapRunCount;
  const char* weights;  // packed: [tap][word][V * lanes]; across groups: f32 [tap][input][lanes]
  const char* ahead;    // weights to fetch meanwhile into the L2 cache, and how many bytes of them per word
  ptrdiff_t aheadStep;
  ptrdiff_t outBytes, residualBytes;  // from pixel to pixel
  const char* const* start;           // per pixel the V * lanes sums to begin with (the upsampled low product), or null
  bool raw;                           // the sums themselves are stored, 32 bits each, without the epilogue
};

// Computes `count` tiles, one after the other, and leaves `tile` at the next.
using TileFunction = void (*)(Tile& tile, int64_t count);

// How weights are packed for a tile, per word of input and output channel.
enum class Words {
  f32,        // 1 f32
  bf16,       // 2 bf16, for a dot product
  bf16AsF32,  // 2 f32 that are bf16: [even or odd element][channel]
  u8,         // 4 i8, for a dot product
  u8AsI16,    // 4 i16: [even or odd elements][channel][2]
  i16         // 2 i16, for a dot product
};

struct TileShape {
  int bestVectors, maxVectors;
  int maxPixels[5];  // by vectors
};

// The tiles of one instruction set and data type.
struct TileSet {
  Words words;
  bool saturates;  // two weights of a pair of elements must not add up to more than 128
  int lanes;
  TileShape shape;
  TileFunction tiles[5][9];  // [vectors][pixels]
  // [vectors][windows]: the pixels of a window of 2 x 2 follow each other, and the mean of their values is stored, in
  // the set's own type. None of integers.
  TileFunction pooled[5][3];
  // A vector of channels of several groups, [pixels]: each reads an element (depthwise), or as many as its group has,
  // or so many words, which lie within two vectors.
  int mostDepthwise, mostGrouped;                          // pixels; 0: there is no instruction for it
  TileFunction depthwise[9], grouped[9], groupedWords[9];  // groupedWords: null where words have no dot product
};

// Those of a level.
struct TileSets {
  const TileSet &f32, &bf16, &i8;
  const TileSet& i8Wide;  // for weights that do not fit i8, or whose pairs saturate it
  const TileSet& i16;     // inputs and weights; for Winograd's transforms of i8
};

}  // namespace octconv

// A level defines the sets whose products differ from those of the level below, and uses that level's others. (These
// round f32 to bf16 without the instruction of avx512bf16.)
OCTCONV_DECLARE(extern const TileSet f32Tiles, bf16Tiles, i8Tiles, i8WideTiles, i16Tiles)
OCTCONV_DECLARE(extern const TileSets tileSets)
