// What the files that compute octConv on the CPU share (see cpu.cc).
#pragma once
#include "../../core/memory.h"
#include "../../core/threads.h"
#include "../../cpu/kernel.h"
#include "../../cpu/tile.h"
#include "../../cpu/winograd.h"
#include "contract.h"

namespace octconv {

// --- Packed weights (pack.cc) ---------------------------------------------------------------------------

struct Panel {
  int64_t begin, channels, vectors, group;  // group: of the first channel
  size_t weights, low;                      // where they are packed: main sources, upsampled sources
  size_t bias, scale;                       // f32, as many as there are lanes; scale: i8 only
};

// The parameters of a branch.
struct PackedBranch : Packed {
  // Of batch normalisation in a prologue or a store: f32 offsets in memory, as many as channels; none without it.
  struct ScaleShift {
    int64_t channels = 0;
    size_t scale = 0, shift = 0;
  };
  // A source whose weights are here.
  struct Reader {
    int64_t inputs, taps;  // channels of a group
    bool upsample;
    bool operator==(const Reader&) const = default;
  };
  const TileSet* set;
  Compute compute;
  int64_t winograd;
  int64_t channels, groups;
  std::vector<Reader> readers;
  bool depthwise;
  std::vector<Panel> panels;
  int64_t mainWords = 0, lowWords = 0;        // per output channel
  int64_t widths = 0;                         // of all panels; Winograd's only
  std::vector<ScaleShift> prologues, stores;  // by source, by store
  Memory memory;

  // Neighbours as one, whose channels lie together; of Winograd's the scales and biases too.
  Panel joined(int64_t begin, int64_t end) const {
    Panel all = panels[begin];
    all.channels = panels[end - 1].begin + panels[end - 1].channels - all.begin;
    return all;
  }
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

std::shared_ptr<const Packed> packBranch(const Attr& attrs, const Params& params, Crew& crew);

// --- Plans (cpu.cc) ---------------------------------------------------------------------------------------------

// How a task makes what the tiles read of an input: rows of it, in the task's own scratch.
struct Prepared {
  int64_t groups;                                  // each filled up to whole words
  Size3 padding;                                   // zeros around each plane
  Shape padded;                                    // the planes before P is applied
  const float *scale = nullptr, *shift = nullptr;  // of the prologue's batch normalisation
  size_t copy = 0, between = 0;                    // in scratch: the rows, and what is pooled on the way to one of them
};

struct TileSource {
  Source conv;
  std::optional<Prepared> prepared;  // none: tiles read the input itself
  Shape shape;                       // of what is read
  int64_t pitch;                     // elements from pixel to pixel
  std::vector<char> zeros;           // what a tap outside reads
  bool rowTaps;                      // one tap is kernel.w * C channels (padded copy)
  int64_t taps() const { return rowTaps ? conv.kernel.t * conv.kernel.h : conv.taps(); }
};

// One sum over sources on one grid of pixels: a branch's main sources, or its upsampled ones on the low grid.
struct Sum {
  std::vector<TileSource> sources;
  Shape grid;                                // of pixels
  Shape points;                              // what the indirection buffer is for: pixels, or Winograd's tiles
  std::vector<std::vector<TapRun>> tapRuns;  // by group
  int64_t taps = 0;
};

// Stores of one activation: level k is P^k of level 0. A level that nobody wants lies in the task's scratch.
struct StoreGroup {
  TensorType type;  // shape: of level 0
  Activation activation;
  const float *scale, *shift;  // of its batch normalisation, or null
  int64_t pitches[3];          // of the levels
  int levels = 1;
  std::optional<size_t> outputs[3] = {};
  size_t scratch[3] = {};
  std::optional<size_t> mean = {};  // an output, `meanPitch` elements from image to image; the sums of rows of level 0
                                    // lie in memory of the step, from `rowSums` on
  int64_t meanPitch = 0;
  size_t rowSums = 0;
};

struct BranchPlan {
  Branch spec;
  const PackedBranch* packed;  // kept alive by the node
  Sum main, low;
  std::vector<StoreGroup> stores;  // the first is what tiles write, the others are made of it
  // A block is `rows` rows of one plane (an image's frame), or `planes` whole planes; a task a block and a panel group.
  int64_t rows = 0, planes = 1, rowBlocks = 1, blocks = 1, panelGroups = 1;
  int64_t tasks() const { return blocks * panelGroups; }
};

// What a task computes: rows [row, rowEnd) of the output (of one plane, or of whole ones), some panels.
struct Block {
  int64_t row, rowEnd, panelBegin, panelEnd;
};

// The row of P^k(y) that a row of y goes into; rows are counted through all planes.
inline int64_t rowAt(const Shape& y, int64_t row, int k) { return row / y.h * halved(y, k).h + (row % y.h >> k); }

// The rows of a sum's points that a block needs.
Range pointRows(const BranchPlan& b, const Sum& sum, const Block& block);

// Rows of some planes of what a source's tiles read.
struct Window {
  int64_t plane, planeEnd, row, rowEnd;
  int64_t rows() const { return (planeEnd - plane) * (rowEnd - row); }
};
Window windowOf(const TileSource& source, const Shape& points, const Range& rows);

// The indirection buffer of the points in some rows of a sum's: to[tap * count + point]. `memory`: the task's scratch.
void pointTo(const Sum& sum, int64_t bytes, const Run& run, const char* memory, const Range& rows, const char** to);
// Runs one panel's tiles over `count` pixels, in tiles of nearly equal size.
void runTiles(const TileSet& set, Tile tile, const Panel& panel, bool depthwise, int64_t count);

// The channels that a block computes.
Panel channelsOf(const BranchPlan& b, const Block& block);

// What becomes of a panel's sums, from the block's first pixel on, whose values go to `out`.
Epilogue epilogueOf(const Node& node, const BranchPlan& b, const Run& run, const Panel& panel, const Block& block,
                    char* out);

// --- Direct convolution (direct.cc) -----------------------------------------------------------------------------

size_t directScratch(const BranchPlan& b);
void runDirect(const Node& node, const BranchPlan& b, const Block& block, const Run& run, char* memory, char* out);

// --- Winograd (winograd.cc) -----------------------------------------------------------------------------

// Throws unless the branch has only 3x3 convolutions that Winograd's algorithm computes.
void checkWinograd(const Branch& branch);
// The sum of 3x3 convolutions as one over the grid of tiles, whose taps are a tile's (O + 2)^2 inputs.
Source overTiles(const Source& source, int64_t winograd);
size_t winogradScratch(const BranchPlan& b);
void runWinograd(const Node& node, const BranchPlan& b, const Block& block, const Run& run, char* memory, char* out);
// Kernels of 3 x 3 as kernels of (O + 2) x (O + 2), one after the other.
std::vector<float> winogradWeights(const std::vector<float>& kernels, const Branch& branch);

}  // namespace octconv
