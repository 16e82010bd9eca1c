// The register tile of a convolution: M pixels x V vectors of output channels, kept in registers over the whole sum.
//
// A convolution reads its input through row pointers (XNNPACK's indirection): for every tap and pixel the address of
// the input channels that the tap multiplies, or of zeros where the tap falls outside. Stride, padding, dilation, odd
// borders and sums over several sources are then all the same loop over `taps x length` products.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace octconv {

// A run of taps that read equally many channels.
struct Segment {
  int64_t taps;
  ptrdiff_t length;  // channels a tap multiplies
  ptrdiff_t offset;  // first channel of the group
};

struct Tile {
  const float* const* rows;  // [tap][pixel], `rowStride` pointers from tap to tap
  ptrdiff_t rowStride;
  const Segment* segments;
  size_t segmentCount;
  const float* weights;       // packed: [tap][channel][V * lanes]; depthwise: [tap][V * lanes]
  const float* bias;          // V * lanes
  const float* const* start;  // per pixel the V * lanes sums to begin with (the upsampled low product), or null
  const float* residual;      // added before the clamp, `pitch` floats from pixel to pixel, or null
  float* out;
  ptrdiff_t pitch;
  ptrdiff_t channels;  // how many of the V * lanes are stored
  float low, high;     // clamp: relu, relu6 or the infinities
};

using TileFunction = void (*)(const Tile&);

// The tiles of one instruction set.
struct TileSet {
  int lanes, maxVectors;
  int maxPixels[5];           // by vectors
  TileFunction tiles[5][9];   // [vectors][pixels]
  TileFunction depthwise[5];  // [pixels], one vector
};

}  // namespace octconv
