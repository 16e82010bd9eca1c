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
  int64_t begin, channels, vectors, tapRuns;  // tapRuns: which of a sum's, those of its group or its own
  size_t weights, low;                        // where they are packed: main sources, upsampled sources
  size_t bias, scale;                         // f32, as many as there are lanes; scale: i8 only
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
  bool overTime;
  int64_t channels, groups;
  std::vector<Reader> readers;
  // Channels of a panel that spans groups, which is one vector; 0: panels are of one group. Depthwise is such a one,
  // each channel of which reads one element.
  int64_t acrossGroups = 0;
  int64_t taken = 1;  // elements that a lane of such a panel takes at once
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

// Inputs in a word of packed weights. Winograd's weights are f32, of integers i16.
inline int64_t perPackedWord(const Branch& b) {
  return !b.winograd ? perWord(b.compute) : b.compute == Compute::i8 ? 2 : 1;
}
inline int64_t packedInputBytes(const Branch& b) { return 4 / perPackedWord(b); }
// Channels, filled up to whole words of packed weights.
inline int64_t filled(int64_t channels, const Branch& b) {
  const int64_t each = perPackedWord(b);
  return (channels + each - 1) / each * each;
}

inline bool splitsWords(Words words) { return words == Words::bf16AsF32 || words == Words::u8AsI16; }

// Products of a tile of outputs per pair of channels, and how many outputs it has.
inline int64_t positionsOf(const Branch& b) {
  return b.overTime ? b.winograd + b.terms[0].sources[0].kernel.t - 1 : (b.winograd + 2) * (b.winograd + 2);
}
inline int64_t outputsOf(const Branch& b) { return b.overTime ? b.winograd : b.winograd * b.winograd; }

// Taps of a source's packed weights: over time a position has those over height and width.
inline int64_t packedTaps(const Branch& b, const Source& s) {
  return !b.winograd ? s.taps() : b.overTime ? s.kernel.h * s.kernel.w : 1;
}

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
  // Across groups: the first input of each output channel, whole panels. Shared, since tap runs point into it.
  std::shared_ptr<const std::vector<int32_t>> at;
  bool rowTaps;  // one tap is kernel.w * C channels (padded copy)
  int64_t taps() const { return rowTaps ? conv.kernel.t * conv.kernel.h : conv.taps(); }
};

// One sum over sources on one grid of pixels: a branch's main sources, or its upsampled ones on the low grid.
struct Sum {
  std::vector<TileSource> sources;
  Shape grid;                                // of pixels
  Shape points;                              // what the indirection buffer is for: pixels, or Winograd's tiles
  std::vector<std::vector<TapRun>> tapRuns;  // by group
  int64_t taps = 0;
  // Across groups: the stride, where all taps are rows of 3 neighbours (`Tile::slides`), or 0. Pointers are then those
  // of input rows, [plane][row][source][column], which taps and rows of points share. Else each tap of a point has one.
  int slides = 0;
  // Pointers to an input row of a source, and how many such rows there are for so many rows of points.
  int64_t rowPointers() const { return slides * (points.w - 1) + 3; }
  int64_t inputRows(int64_t rows) const;
  int64_t pointers(int64_t planes, int64_t rows) const {
    if (!slides) return product(planes, rows, points.w, taps);
    return product(planes, inputRows(rows), sources.size(), rowPointers());
  }
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
  int written = 0;                 // its level that they write; 1: pixels go window by window
  // A block is `rows` rows of `planes` planes (a plane is an image's frame); of several planes it has whole ones, or
  // the same rows of frames of one image. A task is a block and a panel group.
  int64_t rows = 0, planes = 1, rowBlocks = 1, blocks = 1, panelGroups = 1;
  int64_t span = 1;  // planes from one that a block begins with: all, or the frames of an image
  int64_t tasks() const { return blocks * panelGroups; }
};

// Rows of some planes, the same of each.
struct Window {
  int64_t plane, planeEnd, row, rowEnd;
  int64_t planes() const { return planeEnd - plane; }
  int64_t rows() const { return planes() * (rowEnd - row); }
};

// What a task computes: a window of the output, some panels.
struct Block : Window {
  int64_t panelBegin, panelEnd;
};

// Pixels of a block that lie one behind the other: those of a plane, or all if it has whole planes.
struct Stretch {
  int64_t count, pixels;  // how many stretches, and pixels of each
};
inline Stretch stretchesOf(const Shape& y, const Window& w) {
  const bool whole = w.planes() == 1 || w.rowEnd - w.row == y.h;
  const int64_t count = whole ? 1 : w.planes();
  return {count, w.rows() * y.w / count};
}

// The part of P^k(y) that a window of y goes into.
inline Window windowAt(const Shape& y, const Window& w, int k) {
  const int64_t all = halved(y, k).h;
  return {w.plane, w.planeEnd, w.row >> k, std::min(all, ((w.rowEnd - 1) >> k) + 1)};
}

// The points of a sum that a block needs.
Window pointsOf(const BranchPlan& b, const Sum& sum, const Window& block);

// What a source's tiles read for some points of a sum's.
Window windowOf(const TileSource& source, const Shape& points, const Window& at);

// What is read of a source: rows in memory.
struct Held {
  const char* memory;
  Window window;
  const char* zeros;  // what a tap outside reads
};
Held heldOf(const TileSource& source, const Shape& points, const Window& at, const Run& run, const char* memory);

// The indirection buffer of some points of a source: to[tap * count + point].
void pointTo(const TileSource& source, const Shape& points, const Held& held, int64_t bytes, const Window& at,
             const char** to);
// Where they slide: the pointers to the input rows of a source.
void pointToRows(const Sum& sum, const TileSource& source, const Held& held, int64_t bytes, const Window& at,
                 const char** to);
// That of all sources of a sum.
template <class HeldOf>
void pointTo(const Sum& sum, int64_t bytes, const Window& at, const char** to, const HeldOf& held) {
  for (const TileSource& source : sum.sources)
    if (sum.slides) {
      pointToRows(sum, source, held(source), bytes, at, to);
      to += sum.rowPointers();
    } else {
      pointTo(source, sum.points, held(source), bytes, at, to);
      to += source.taps() * at.rows() * sum.points.w;
    }
}
// Functions by pixels, or by windows of 4 pixels, and the most of these.
struct PanelTiles {
  const TileFunction* functions;
  int64_t most, pixels = 1;  // of each
};
inline PanelTiles tilesOf(const TileSet& set, const Panel& panel) {
  return {set.tiles[panel.vectors], set.shape.maxPixels[panel.vectors]};
}
inline PanelTiles tilesOf(const PackedBranch& packed, const Panel& panel) {
  if (packed.depthwise) return {packed.set->depthwise, packed.set->mostDepthwise};
  if (packed.acrossGroups == 0) return tilesOf(*packed.set, panel);
  return {packed.taken > 1 ? packed.set->groupedWords : packed.set->grouped, packed.set->mostGrouped};
}
// Those of a branch's main sum.
inline PanelTiles tilesOf(const BranchPlan& b, const Panel& panel) {
  const TileSet& set = *b.packed->set;
  if (b.written == 0) return tilesOf(*b.packed, panel);
  return {set.pooled[panel.vectors], set.shape.maxPixels[panel.vectors] / 4, 4};
}
// Runs one panel's tiles, of nearly equal size, over so many pixels, or windows.
void runTiles(const TileSet& set, Tile tile, const Panel& panel, const PanelTiles& tiles, int64_t pixels);

// Where a block's values of y in a plane go.
struct Destination {
  char* first;        // of the block's first plane
  int64_t planeStep;  // bytes
};

// The channels that a block computes.
Panel channelsOf(const BranchPlan& b, const Block& block);

// What becomes of a panel's sums, from a pixel of y on, whose values go to `out`.
Epilogue epilogueOf(const Node& node, const BranchPlan& b, const Run& run, const Panel& panel, int64_t pixel,
                    char* out);

// --- Direct convolution (direct.cc) -----------------------------------------------------------------------------

// What a block's tiles read: pointers to inputs, those of the low pixels under it, and for each pixel its sums in T.
struct Pointers {
  const char **main, **low, **start;
  char* sums;  // T of a panel
  int64_t count, lowCount, lowPitch;
  int64_t rows, lowRows;  // of a plane
};
struct PointerPlaces {  // offsets in a task's scratch
  size_t main, low, start, sums, tiles, rows;
};
PointerPlaces layOutPointers(const BranchPlan& b, Layout& layout);
// All but those to inputs are filled.
Pointers pointersAt(const BranchPlan& b, const Block& block, const PointerPlaces& places, char* memory);
// T of a panel, from its packed weights.
void runLow(const BranchPlan& b, const Panel& panel, const Pointers& pointers, const char* weights);
// The tiles of a panel over `count` pixels from `first` on; `tile` says what becomes of the sums.
void runMain(const BranchPlan& b, const Panel& panel, const Pointers& pointers, const char* weights, Tile tile,
             int64_t first, int64_t count);

size_t directScratch(const BranchPlan& b);
void runDirect(const Node& node, const BranchPlan& b, const Block& block, const Run& run, char* memory,
               const Destination& out);

// --- Winograd (winograd.cc) -----------------------------------------------------------------------------

// Throws unless the branch has only 3x3 convolutions that Winograd's algorithm computes.
void checkWinograd(const Branch& branch);
// The sum of 3x3 convolutions as one over the grid of tiles, whose taps are a tile's (O + 2)^2 inputs.
Source overTiles(const Source& source, int64_t winograd);
size_t winogradScratch(const BranchPlan& b);
void runWinograd(const Node& node, const BranchPlan& b, const Block& block, const Run& run, char* memory,
                 const Destination& out);
// Kernels of 3 x 3 as kernels of (O + 2) x (O + 2), one after the other.
std::vector<float> winogradWeights(const std::vector<float>& kernels, const Branch& branch);

// --- Winograd over time (overtime.cc) ---------------------------------------------------------------------------

// Throws unless all convolutions of the branch have 3, or all have 5, taps over time.
void checkOverTime(const Branch& branch);
// A convolution as the one of a position, which has no time.
Source atPosition(const Source& source);
// The planes of an input x that a block reads.
Range timeOf(const BranchPlan& b, const Shape& x, const Window& block);
size_t overTimeScratch(const BranchPlan& b);
void runOverTime(const Node& node, const BranchPlan& b, const Block& block, const Run& run, char* memory,
                 const Destination& out);
// Kernels of kt taps over time as kernels of all positions, one after the other; `taps` of them over height and width.
std::vector<float> overTimeWeights(const std::vector<float>& kernels, const Branch& branch, int64_t taps);

}  // namespace octconv
