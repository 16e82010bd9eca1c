// What the host tells octConv's CUDA kernels of a step (cuda.cu): plain data, the same on both sides.
#pragma once
#include "../../cuda/tensor.h"

namespace octconv::cuda {

inline constexpr int blockThreads = 256;
inline constexpr int chunkBytes = 64;   // input channels of a step of the main loop
inline constexpr int slots = 3;         // of shared memory for such steps
inline constexpr int unitColumns = 32;  // output channels whose weights lie together
inline constexpr int unitBytes = unitColumns * chunkBytes;
inline constexpr int mostSources = 8, mostStores = 8, mostBranches = 2;

// What a block computes: four groups of `lows` output pixels x `columns` output channels.
struct Tile {
  int lows, columns;
};
inline constexpr Tile tiles[] = {{32, 64}, {64, 32}, {64, 64}, {32, 128}, {64, 128}};
// The last one leaves no room for a second block on a multiprocessor: it has a kernel of its own.
inline constexpr int largestTile = 4;
// That of branches with several groups: as narrow as a unit of columns, so that it reads the inputs of few groups.
inline constexpr int groupedTile = 1;
static_assert(tiles[groupedTile].columns == unitColumns);
// The first group, of so many outputs, that has columns in the unit of this one.
template <class Int>
OCTCONV_BOTH constexpr Int firstGroup(Int column, Int outputs) {
  return column / unitColumns * unitColumns / outputs;
}
// The first piece of 16 bytes of a pixel that such a unit reads.
template <class Int>
OCTCONV_BOTH constexpr Int firstPiece(Int group, Int inputs, Int bytes) {
  return group * inputs * bytes / 16;
}

OCTCONV_BOTH constexpr int slotBytes(const Tile& tile) { return (4 * tile.lows + tile.columns) * chunkBytes; }
// Slots, and where each output pixel lies.
constexpr int placesBytes(const Tile& tile) { return 4 * tile.lows * 8; }
constexpr int sharedBytes(const Tile& tile) { return slots * slotBytes(tile) + placesBytes(tile); }

// Blocks of octConvSums that add up a tile, a thread four columns of four pixels.
OCTCONV_BOTH constexpr int partsOf(const Tile& tile) { return tile.lows * tile.columns / 4 / blockThreads; }

// A thread of octConvDepthwise computes four output pixels of a piece of channels; their sums go through shared memory.
inline constexpr int depthwiseThreads = 128;
inline constexpr int depthwiseSharedBytes = depthwiseThreads * 4 * 8 * 4;  // of 8 channels in 16 bits

struct ActivationArgs {
  const float *scale, *shift;  // of batch normalisation, per channel; null without
  int function;                // a Unary; negative: none
  float slope, least, most;
};

// x is of the type that is multiplied, and whole pieces of 16 bytes are its own or zeros.
struct SourceArgs {
  TensorArgs x;
  Extent kernel, stride, padding, dilation;
  int inputs;     // of a group
  int window;     // the most bytes of a pixel that a unit of columns reads: the inputs of its groups
  int chunks;     // of a tap
  bool upsample;  // the product, by 2
};

struct StoreArgs {
  TensorArgs y;
  int pool;  // 0 or 1
  ActivationArgs activation;
};

// y = residual + bias + sum over sources; those that are upsampled come first.
struct BranchArgs {
  int n;
  Extent size;                   // of y
  int channels, storedChannels;  // the latter with the zeros that stores put behind them
  bool phased;  // the groups of a tile are the four phases of its low pixels, otherwise pixels in order
  int groups;   // of channels; 1 of a depthwise branch, whose kernel takes it for granted
  int tile;     // of `tiles`
  int columnTiles;
  int splits;             // blocks that share the steps of a tile
  int blocks, sumBlocks;  // of octConv or octConvDepthwise, and of octConvSums
  int sources, stores;
  const char* weights;  // as octConv or octConvDepthwise reads them, see packing in cuda.cc
  const float* bias;    // of all columns; null of a gated branch
  int64_t partials;     // f32 [tile][split][row][column], bytes from the arena's begin
  bool gated;           // source[0].x times `gate`, in place of products with weights
  TensorArgs gate;
  bool hasResidual;
  TensorArgs residual;
  SourceArgs source[mostSources];
  StoreArgs store[mostStores];
};

struct OctConvArgs {
  BranchArgs branch[mostBranches];
};

// What the kernels read where they cannot read a value as it lies: y = P^pool(clamp(batchNorm(x))) in the type that is
// multiplied, with zeros around its columns and behind its channels. A pixel of y has the channels of `taps` frames of
// x, one after the other, or zeros for frames that are not there.
struct PrepareArgs {
  TensorArgs x, y;
  int n;
  int taps, stride, padding, dilation;
  int pool;           // at most 2
  int left, columns;  // of y: zeros, then those of P^pool(x), then zeros
  DType dtype;        // that is multiplied
  ActivationArgs prologue;
};

// Where 16-byte piece `piece` of a row of 64 bytes lies in shared memory: eight rows that are read together use all
// banks.
OCTCONV_BOTH constexpr int swizzled(int row, int piece) { return row * chunkBytes + (piece ^ (row >> 1 & 3)) * 16; }

}  // namespace octconv::cuda
