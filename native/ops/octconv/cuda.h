// What the host tells octConv's CUDA kernels of a step (cuda.cu): plain data, the same on both sides.
#pragma once
#include "../../cuda/tensor.h"

namespace octconv::cuda {

inline constexpr int tileRows = 128;   // output pixels of a block
inline constexpr int chunkBytes = 64;  // input channels of a step of the main loop
inline constexpr int slots = 3;        // of shared memory for such steps
inline constexpr int blockThreads = 128;
inline constexpr int mostSources = 8, mostStores = 4, mostBranches = 2;

constexpr int sharedBytes(int columns) { return slots * (tileRows + columns) * chunkBytes; }

struct ActivationArgs {
  const float *scale, *shift;  // of batch normalisation, per channel; null without
  int function;                // a Unary, of stores only; negative: none
  float slope, least, most;
};

struct SourceArgs {
  TensorArgs x;
  Extent kernel, stride, padding, dilation;
  int chunks;     // of a tap
  bool upsample;  // the product, by 2
  bool direct;    // x is copied as it lies; otherwise element by element: another type, prologue, pooling, any pitch
  int pool;       // how often P is applied to x
  ActivationArgs prologue;
};

struct StoreArgs {
  TensorArgs y;
  int pool;  // 0 or 1
  ActivationArgs activation;
};

// y = residual + bias + sum over sources; those that are upsampled come first.
struct BranchArgs {
  int n;
  Extent size;  // of y
  int channels;
  bool phased;  // rows of a tile are four phases of 32 low pixels, otherwise 128 pixels in order
  int columns;  // of a tile, output channels: 32 or 64
  int columnTiles, tiles;
  int sources, stores;
  const char* weights;  // [column tile][source][tap][chunk][column][64 bytes], see packing in cuda.cc
  const float* bias;    // of all columns; null of a gated branch
  bool hasResidual;
  TensorArgs residual;
  SourceArgs source[mostSources];
  StoreArgs store[mostStores];
};

struct OctConvArgs {
  BranchArgs branch[mostBranches];
};

// A branch that is computed without tensor cores: one of several groups, or a gated one.
struct PlainArgs {
  BranchArgs branch;  // its weights: f32 [source][tap][input of a group][channel]
  int groups;
  bool narrow;  // multiplies bf16
  bool gated;
  TensorArgs x, gate;
};

// Where 16-byte piece `piece` of a row of 64 bytes lies in shared memory: eight rows that are read together use all
// banks.
OCTCONV_BOTH constexpr int swizzled(int row, int piece) { return row * chunkBytes + (piece ^ (row >> 1 & 3)) * 16; }

}  // namespace octconv::cuda
