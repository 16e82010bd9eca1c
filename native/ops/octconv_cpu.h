// What the files that compute octConv on the CPU share (see octconv_cpu.cc).
#pragma once
#include "../core/memory.h"
#include "../cpu/tile.h"
#include "../cpu/winograd.h"
#include "octconv.h"

namespace octconv {

// --- Packed weights (octconv_pack.cc) ---------------------------------------------------------------------------

struct Panel {
  int64_t begin, channels, vectors, group;  // group: of the first channel
  size_t weights, low;                      // where they are packed: main sources, upsampled sources
  size_t bias, scale;                       // f32, as many as there are lanes; scale: i8 only
};

struct PackedWeights : Packed {
  struct PerBranch {
    const TileSet* set;
    Compute compute;
    int64_t winograd;
    bool depthwise;
    std::vector<Panel> panels;
    int64_t mainWords, lowWords;  // per output channel
    int64_t widths = 0;           // of all panels; Winograd's only
    // Neighbours as one, whose channels lie together; of Winograd's the scales and biases too.
    Panel joined(int64_t begin, int64_t end) const {
      Panel all = panels[begin];
      all.channels = panels[end - 1].begin + panels[end - 1].channels - all.begin;
      return all;
    }
  };
  std::vector<PerBranch> branches;
  Memory memory;
  size_t bytes() const override { return memory.size(); }
  const float* floats(size_t offset) const { return reinterpret_cast<const float*>(memory.data() + offset); }
};

// Elements in a word of 32 bits.
inline int64_t perWord(Compute compute) { return compute == Compute::i8 ? 4 : compute == Compute::bf16 ? 2 : 1; }
inline int64_t sizeOf(Compute compute) { return 4 / perWord(compute); }
inline int64_t wordsOf(int64_t channels, Compute compute) {
  return (channels + perWord(compute) - 1) / perWord(compute);
}

// Inputs in a word of packed weights. Winograd's weights are f32, of integers i16.
inline int64_t perPackedWord(const Branch& b) {
  return !b.winograd ? perWord(b.compute) : b.compute == Compute::i8 ? 2 : 1;
}
inline int64_t packedInputBytes(const Branch& b) { return 4 / perPackedWord(b); }

inline bool splitsWords(Words words) { return words == Words::bf16AsF32 || words == Words::u8AsI16; }

// Products of a tile per pair of channels.
inline int64_t positionsOf(const Branch& b) { return (b.winograd + 2) * (b.winograd + 2); }

// Bytes of the weights of one word and one output channel.
inline int64_t packedBytes(Words words) { return splitsWords(words) ? 8 : 4; }

// --- Plans (octconv_cpu.cc) -------------------------------------------------------------------------------------

// An input as the tiles read it: the node's input, or a prepared copy in shared scratch.
struct Prepared {
  size_t input;
  Compute compute;  // whose type it has
  int64_t groups;   // each filled up to whole words
  Size3 padding;    // zeros around each plane
  int64_t pool;     // how often P is applied then
  float scale;      // i8
  int zero;
  Shape from;
  std::vector<Shape> shapes;    // converted, P of that, P of P
  std::vector<size_t> offsets;  // of these in shared scratch
};

struct TileSource {
  Source conv;
  int prepared;             // index, or -1: the input itself
  Shape shape;              // of what is read
  std::vector<char> zeros;  // what a tap outside reads
  bool rowTaps;             // one tap is kernel.w * C channels (padded copy)
  int64_t taps() const { return rowTaps ? conv.kernel.t * conv.kernel.h : conv.taps(); }
};

// One sum over sources on one grid of pixels: a branch's main sources, or its upsampled ones on the low grid.
struct Sum {
  std::vector<TileSource> sources;
  Shape grid;                                  // of pixels
  Shape points;                                // what row pointers are for: pixels, or Winograd's tiles
  std::vector<std::vector<Segment>> segments;  // by group
  int64_t taps = 0;
};

struct BranchPlan {
  Branch spec;
  const PackedWeights::PerBranch* packed;
  Sum main, low;
  // A block is `rows` rows of one plane (an image's frame), or `planes` whole planes; a task a block and a panel group.
  int64_t rows = 0, planes = 1, rowBlocks = 1, blocks = 1, panelGroups = 1;
  int64_t tasks() const { return blocks * panelGroups; }
};

struct FastPlan {
  const PackedWeights* weights;  // kept alive by the node
  std::vector<Prepared> prepared;
  std::vector<BranchPlan> branches;
};

// The row pointers of pixels [first, last) of a sum's grid: rows[tap * count + pixel].
void pointTo(const FastPlan& plan, const Sum& sum, int64_t bytes, const Run& run, int64_t first, int64_t last,
             const char** rows);
// Runs one panel's tiles over `count` pixels, in tiles of nearly equal size.
void runTiles(const TileSet& set, Tile tile, const Panel& panel, bool depthwise, int64_t count);

// What becomes of a panel's sums, from `pixel` of the output on.
Epilogue epilogueOf(const FastPlan& plan, const Node& node, const BranchPlan& b, const Run& run, const Panel& panel,
                    int64_t pixel);

// What a task computes: `count` rows of the output from `row` on (of one plane, or of whole ones), some panels.
struct Block {
  int64_t row, rowEnd, panelBegin, panelEnd;
};

// --- Winograd (octconv_winograd.cc) -----------------------------------------------------------------------------

// The sum of 3x3 convolutions as one over the grid of tiles, whose taps are a tile's (O + 2)^2 inputs.
Source overTiles(const Source& source, int64_t winograd);
size_t winogradScratch(const BranchPlan& b);
void runWinograd(const FastPlan& plan, const Node& node, const BranchPlan& b, const Block& block, const Run& run,
                 char* memory);
// Kernels of 3 x 3 as kernels of (O + 2) x (O + 2), one after the other.
std::vector<float> winogradWeights(const std::vector<float>& kernels, const Branch& branch);

}  // namespace octconv
