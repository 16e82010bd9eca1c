// octConv on the CPU.
//
// A task computes a block of output pixels (whole rows, or whole images where they are small) for some panels of
// output channels (1 to 4 vectors each). For each panel:
//   1. conv(xL; Wlh) of the low pixels under the block goes into T, a few KB that stay in the L1 cache;
//   2. the register tiles of the block START from their T (upsampling costs a load), add up all other sources,
//      add the residual, clamp and store;
//   3. P(y) is taken from the rows just stored.
// Nothing is shared between tasks, so neither a barrier nor the thread count can change a bit.
//
// Some inputs need preparing, in a pass before the tasks: one that the producer could not write as it is wanted (the
// network's own, an odd number of channels), which is converted, its channels filled up to whole words of 32 bits, and
// pooled; and one of few channels under a wide kernel (the stem's 7x7 over RGB), which is copied with its padding so
// that a row of taps is one tap of kernel.w * C channels.
#include "../core/memory.h"
#include "../cpu/rows.h"
#include "../cpu/tile.h"
#include "octconv.h"

namespace octconv {
namespace {

struct Panel {
  int64_t begin, channels, vectors, group;  // group: of the first channel
  size_t weights, low;                      // where they are packed: main sources, upsampled sources
  size_t bias, scale;                       // f32, as many as there are lanes; scale: i8 only
};

struct PackedWeights : Packed {
  struct PerBranch {
    Compute compute;
    bool depthwise;
    std::vector<Panel> panels;
    int64_t mainWords, lowWords;  // per output channel
  };
  std::vector<PerBranch> branches;
  Memory memory;
  size_t bytes() const override { return memory.size(); }
  const float* floats(size_t offset) const { return reinterpret_cast<const float*>(memory.data() + offset); }
};

const TileSet& tilesFor(Compute compute) { return (*OCTCONV_PICK(tileSets))[static_cast<int>(compute)]; }

// Elements in a word of 32 bits.
int64_t perWord(Compute compute) { return compute == Compute::i8 ? 4 : compute == Compute::bf16 ? 2 : 1; }
int64_t sizeOf(Compute compute) { return 4 / perWord(compute); }
int64_t wordsOf(int64_t channels, Compute compute) { return (channels + perWord(compute) - 1) / perWord(compute); }

bool splitsWords(Words words) { return words == Words::bf16AsF32 || words == Words::u8AsI16; }

// Bytes of the weights of one word and one output channel.
int64_t packedBytes(Words words) { return splitsWords(words) ? 8 : 4; }

// Puts the weight of element `i` of a word for output channel `c` of `width` (see Words in tile.h).
void putWeight(Words words, char* word, int64_t width, int64_t c, int64_t i, float w) {
  switch (words) {
    case Words::f32:
      reinterpret_cast<float*>(word)[c] = w;
      break;
    case Words::bf16:
      reinterpret_cast<BFloat16*>(word)[c * 2 + i] = bfloat16Of(w);
      break;
    case Words::bf16AsF32:
      reinterpret_cast<float*>(word)[i * width + c] = floatOf(bfloat16Of(w));
      break;
    case Words::u8:
      reinterpret_cast<int8_t*>(word)[c * 4 + i] = static_cast<int8_t>(w);
      break;
    case Words::u8AsI16:
      reinterpret_cast<int16_t*>(word)[(i % 2 * width + c) * 2 + i / 2] = static_cast<int16_t>(w);
      break;
  }
}

// Splits a group's channels into panels of nearly equal vectors, about as many as are best.
std::vector<Panel> panelsOf(const TileSet& set, int64_t channels, int64_t groups, bool depthwise) {
  const auto& [best, most, pixels] = set.shape;
  std::vector<Panel> panels;
  for (int64_t g = 0; g < (depthwise ? 1 : groups); g++) {
    const int64_t inGroup = depthwise ? channels : channels / groups, vectors = (inGroup + set.lanes - 1) / set.lanes;
    const int64_t count = depthwise ? vectors : std::max((vectors + most - 1) / most, vectors / best);
    for (int64_t i = 0; i < count; i++) {
      const auto [first, last] = piece(vectors, count, i);
      const int64_t begin = first * set.lanes;
      panels.push_back({g * inGroup + begin, std::min(inGroup, last * set.lanes) - begin, last - first,
                        depthwise ? begin : g, 0, 0, 0, 0});
    }
  }
  return panels;
}

// A depthwise tile takes one f32 per channel and tap.
Words depthwiseWords(Compute compute) { return compute == Compute::bf16 ? Words::bf16AsF32 : Words::f32; }

// Where the numbers of a branch's panels go; whether all is depthwise.
PackedWeights::PerBranch layOut(const Branch& branch, const Params& params, Layout& layout) {
  const TileSet& set = tilesFor(branch.compute);
  const int64_t channels = outputChannels(branch, params), groups = branch.groups();
  if (channels < 1 || groups < 1 || channels % groups)
    fail("octConv: ", groups, " groups do not divide ", channels, " output channels");
  bool depthwise = groups > 1 && groups == channels;
  branch.eachSource([&](const Source& s) { depthwise = depthwise && inputsOf(s, params) == 1 && !s.upsample; });
  int64_t mainWords = 0, lowWords = 0;
  branch.eachSource([&](const Source& s) {
    (s.upsample ? lowWords : mainWords) += s.taps() * wordsOf(inputsOf(s, params), branch.compute);
  });
  PackedWeights::PerBranch per{branch.compute, depthwise, panelsOf(set, channels, groups, depthwise), mainWords,
                               lowWords};
  for (Panel& panel : per.panels) {
    const int64_t width = panel.vectors * set.lanes, bytes = depthwise ? 4 : packedBytes(set.words);
    panel.bias = layout.add(width * 4);
    panel.scale = branch.compute == Compute::i8 ? layout.add(width * 4) : 0;
    panel.weights = layout.add(mainWords * width * bytes);
    panel.low = layout.add(lowWords * width * bytes);
  }
  return per;
}

void packBranch(const Branch& branch, const PackedWeights::PerBranch& per, const Params& params, char* memory) {
  const TileSet& set = tilesFor(branch.compute);
  const int64_t channels = outputChannels(branch, params);
  const bool integers = branch.compute == Compute::i8;
  // bias[o] + unit[o] * sum: of integers, unit is what a product is worth.
  std::vector<double> bias(channels, 0), unit(channels, integers ? 0 : 1);
  std::vector<size_t> next, nextLow;
  for (const Panel& panel : per.panels) next.push_back(panel.weights), nextLow.push_back(panel.low);
  for (const Term& term : branch.terms) {
    const Affine affine = affineOf(term, params, channels);
    for (int64_t o = 0; o < channels; o++) bias[o] += affine.shift[o];
    for (const Source& source : term.sources) {
      Weights w = weightsOf(source, params, channels);
      const int64_t each = static_cast<int64_t>(w.elements.size()) / channels, inputs = each / source.taps();
      for (int64_t o = 0; o < channels; o++) {
        float* row = w.elements.data() + o * each;
        const double scale = affine.scale[o] * w.scale[o];
        if (!integers) {
          for (int64_t i = 0; i < each; i++) row[i] *= static_cast<float>(scale);
          continue;
        }
        const double mine = std::abs(scale * source.scale), sign = scale < 0 ? -1 : scale > 0 ? 1 : 0;
        for (int64_t i = 0; i < each; i++) row[i] *= static_cast<float>(sign);
        if (unit[o] == 0) unit[o] = mine;
        if (std::abs(mine - unit[o]) > 1e-4 * std::abs(unit[o]) && mine != 0)
          fail("octConv: ", source.weight, " has i8 of another scale than the others of output channel ", o, ", ", mine,
               " instead of ", unit[o]);
        double sum = 0;
        for (int64_t i = 0; i < each; i++) sum += row[i];
        bias[o] -= unit[o] * source.zero * sum;
      }
      const int64_t words = per.depthwise ? 1 : wordsOf(inputs, branch.compute);
      for (size_t p = 0; p < per.panels.size(); p++) {
        const Panel& panel = per.panels[p];
        const int64_t width = panel.vectors * set.lanes, bytes = width * (per.depthwise ? 4 : packedBytes(set.words));
        size_t& at = source.upsample ? nextLow[p] : next[p];
        for (int64_t c = 0; c < panel.channels; c++) {
          const float* from = w.elements.data() + (panel.begin + c) * each;
          for (int64_t tap = 0; tap < source.taps(); tap++)
            for (int64_t i = 0; i < inputs; i++) {
              char* word = memory + at + (tap * words + i / perWord(branch.compute)) * bytes;
              putWeight(per.depthwise ? depthwiseWords(branch.compute) : set.words, word, width, c,
                        i % perWord(branch.compute), from[i * source.taps() + tap]);
            }
        }
        at += source.taps() * words * bytes;
      }
    }
  }
  for (const Panel& panel : per.panels)
    for (int64_t c = 0; c < panel.channels; c++) {
      reinterpret_cast<float*>(memory + panel.bias)[c] = static_cast<float>(bias[panel.begin + c]);
      if (integers) reinterpret_cast<float*>(memory + panel.scale)[c] = static_cast<float>(unit[panel.begin + c]);
    }
}

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
  Shape grid;
  std::vector<std::vector<Segment>> segments;  // by group
  int64_t taps = 0;
};

struct BranchPlan {
  Branch spec;
  const PackedWeights::PerBranch* packed;
  const TileSet* set;
  Sum main, low;
  // A block is `rows` rows of one plane (an image's frame), or `planes` whole planes; a task a block and a panel group.
  int64_t rows = 0, planes = 1, rowBlocks = 1, blocks = 1, panelGroups = 1;
  int64_t tasks() const { return blocks * panelGroups; }
};

struct FastPlan {
  const PackedWeights* weights;  // kept alive by the node
  std::vector<Prepared> prepared;
  std::vector<BranchPlan> branches;
  std::vector<float> noBias;
};

constexpr int64_t fewChannels = 16;        // below this an input under a wide kernel is copied with its padding
constexpr int64_t blockBytes = 256 << 10;  // input bytes of a block: a good part of the L2 cache
constexpr int64_t fewestPixels = 48;       // of a block: a panel's weights are read once per block
constexpr double taskFlops = 2e6;          // about 20 us: less is not worth another thread
constexpr int64_t tasksPerThread = 6;

int prepare(FastPlan& plan, const Node& node, const Branch& branch, const Source& s, bool pad, Layout& layout) {
  const Size3 padding = pad ? s.padding : Size3(0, 0, 0);
  const int64_t bytes = sizeOf(branch.compute), c = node.in(s.input).c / s.groups;
  Prepared wanted{s.input, branch.compute, s.groups, padding, s.pool, s.scale, s.zero, node.in(s.input), {}, {}};
  for (size_t i = 0; i < plan.prepared.size(); i++) {
    const Prepared& p = plan.prepared[i];
    if (p.input == s.input && p.compute == branch.compute && p.groups == s.groups && p.padding == padding &&
        p.pool == s.pool && p.scale == s.scale && p.zero == s.zero)
      return static_cast<int>(i);
  }
  Shape shape = wanted.from;
  shape.h += 2 * padding.h, shape.w += 2 * padding.w;
  shape.c = s.groups * wordsOf(c, branch.compute) * perWord(branch.compute);
  for (int64_t times = 0; times <= s.pool; times++) {
    wanted.shapes.push_back(halved(shape, times));
    wanted.offsets.push_back(layout.add(wanted.shapes.back().elements() * bytes));
  }
  plan.prepared.push_back(std::move(wanted));
  return static_cast<int>(plan.prepared.size()) - 1;
}

Sum sumOf(FastPlan& plan, const Node& node, const Branch& branch, bool depthwise, bool low, Layout& layout) {
  Sum sum;
  const Shape y = node.out(branch.outputs[0]);
  const int64_t bytes = sizeOf(branch.compute);
  sum.grid = low ? halved(y) : y;
  sum.segments.resize(branch.groups());
  branch.eachSource([&](const Source& s) {
    if (s.upsample != low) return;
    const TensorType& x = node.inputs[s.input];
    const int64_t inGroup = x.shape.c / s.groups;
    const bool rowTaps = inGroup < fewChannels && s.kernel.w > 1 && s.groups == 1 && s.dilation.w == 1 && s.pool == 0;
    const bool whole = depthwise || inGroup * bytes % 4 == 0;
    const bool asIs = x.dtype == activationOf(branch.compute) && whole && s.pool == 0 && !rowTaps;
    TileSource source{s, -1, x.shape, {}, rowTaps};
    // A depthwise convolution reads elements, not words: one group, as wide as it is.
    Source read = s;
    if (depthwise) read.groups = 1;
    if (!asIs) source.prepared = prepare(plan, node, branch, read, rowTaps, layout);
    if (!asIs) source.shape = plan.prepared[source.prepared].shapes.back();
    const int64_t pitch = source.shape.c * bytes, channels = pitch / s.groups;
    for (int64_t g = 0; g < branch.groups(); g++)
      sum.segments[g].push_back({source.taps(),
                                 rowTaps     ? s.kernel.w * pitch
                                 : depthwise ? 0
                                             : channels,
                                 depthwise ? g * bytes : g * channels});
    source.zeros.assign(rowTaps ? s.kernel.w * pitch : pitch,
                        static_cast<char>(branch.compute == Compute::i8 ? s.zero : 0));
    sum.taps += source.taps();
    sum.sources.push_back(std::move(source));
  });
  return sum;
}

// The row pointers of pixels [first, last) of a sum's grid: rows[tap * count + pixel].
void pointTo(const FastPlan& plan, const Sum& sum, int64_t bytes, const Run& run, int64_t first, int64_t last,
             const char** rows) {
  const int64_t count = last - first;
  const Shape& grid = sum.grid;
  for (const TileSource& source : sum.sources) {
    const Source& s = source.conv;
    const Shape& x = source.shape;
    const char *zeros = source.zeros.data(), *base = source.prepared < 0
                                                         ? run.in<char>(s.input)
                                                         : run.shared + plan.prepared[source.prepared].offsets.back();
    const int64_t pitch = x.c * bytes;
    const int64_t columns = source.rowTaps ? 1 : s.kernel.w, padH = source.rowTaps ? 0 : s.padding.h,
                  padW = source.rowTaps ? 0 : s.padding.w;
    int64_t row = first / grid.w, column = first % grid.w;
    for (int64_t p = 0; p < count; row++, column = 0) {
      const int64_t n = row / (grid.t * grid.h), t = row / grid.h % grid.t, y = row % grid.h;
      const int64_t until = std::min(grid.w - column, count - p);
      const char** to = rows + p;
      for (int64_t kt = 0; kt < s.kernel.t; kt++) {
        const int64_t ti = t * s.stride.t - s.padding.t + kt * s.dilation.t;
        for (int64_t ky = 0; ky < s.kernel.h; ky++) {
          const int64_t yi = y * s.stride.h - padH + ky * s.dilation.h;
          const bool inside = ti >= 0 && ti < x.t && yi >= 0 && yi < x.h;
          const char* line = base + ((n * x.t + ti) * x.h + yi) * x.w * pitch;
          for (int64_t kx = 0; kx < columns; kx++, to += count) {
            const int64_t shift = kx * s.dilation.w - padW;
            for (int64_t i = 0; i < until; i++) {
              const int64_t xi = (column + i) * s.stride.w + shift;
              to[i] = inside && xi >= 0 && xi < x.w ? line + xi * pitch : zeros;
            }
          }
        }
      }
      p += until;
    }
    rows += source.taps() * count;
  }
}

// Runs one panel's tiles over `count` pixels, in tiles of nearly equal size.
void runTiles(const TileSet& set, Tile tile, const Panel& panel, bool depthwise, int64_t count) {
  const int64_t most = depthwise ? 4 : set.shape.maxPixels[panel.vectors], parts = (count + most - 1) / most;
  const TileFunction* functions = depthwise ? set.depthwise : set.tiles[panel.vectors];
  const int64_t outBytes = tile.raw ? 4 : static_cast<int64_t>(bytesOf(tile.out.dtype)),
                residualBytes = static_cast<int64_t>(bytesOf(tile.residual.dtype));
  const Tile base = tile;
  for (int64_t i = 0; i < parts; i++) {
    const auto [begin, end] = piece(count, parts, i);
    tile.rows = base.rows + begin;
    tile.start = base.start ? base.start + begin : nullptr;
    tile.residual.data =
        base.residual.data ? static_cast<char*>(base.residual.data) + begin * base.pitch * residualBytes : nullptr;
    tile.out.data = static_cast<char*>(base.out.data) + begin * base.pitch * outBytes;
    functions[end - begin](tile);
  }
}

struct Scratch {  // offsets in a thread's scratch
  size_t rows, lowRows, start, low, size;
};

Scratch scratchOf(const BranchPlan& b) {
  const Shape& y = b.main.grid;
  const int64_t pixels = b.planes * b.rows * y.w;
  const int64_t lowPixels = b.low.taps ? b.planes * half(b.rows) * half(y.w) : 0;
  Layout layout;
  Scratch s{};
  s.rows = layout.add(pixels * b.main.taps * sizeof(void*));
  s.lowRows = layout.add(lowPixels * b.low.taps * sizeof(void*));
  s.start = layout.add(pixels * sizeof(void*));
  s.low = layout.add(lowPixels * b.set->shape.maxVectors * b.set->lanes * 4);
  s.size = layout.size();
  return s;
}

void halveBlock(const Run& run, const BranchPlan& b, const Node& node, int64_t row, int64_t rowEnd,
                const Panel& panel) {
  const auto halve = OCTCONV_PICK(halveRows);
  const DType dtype = node.outputs[b.spec.outputs[0]].dtype;
  const auto bytes = static_cast<int64_t>(bytesOf(dtype));
  for (size_t k = 1; k < b.spec.outputs.size(); k++) {
    const Shape from = node.out(b.spec.outputs[k - 1]), to = node.out(b.spec.outputs[k]);
    const int64_t scale = int64_t{1} << (k - 1);
    for (int64_t r = row; r < rowEnd;) {  // plane by plane
      const int64_t plane = r / b.main.grid.h, y = r % b.main.grid.h,
                    end = std::min(rowEnd - plane * b.main.grid.h, b.main.grid.h);
      const int64_t first = y / scale, last = (end + scale - 1) / scale;
      const int64_t in = (plane * from.h + first) * from.w * from.c, out = (plane * to.h + first / 2) * to.w * to.c;
      halve(dtype, run.out<char>(b.spec.outputs[k - 1]) + (in + panel.begin) * bytes, from.c, last - first, from.w,
            run.out<char>(b.spec.outputs[k]) + (out + panel.begin) * bytes, to.c, static_cast<int>(panel.channels));
      r = plane * b.main.grid.h + end;
    }
  }
}

Elements elementsOf(void* data, const TensorType& type) { return {data, type.dtype, type.scale, type.zero}; }

void runTask(const FastPlan& plan, const Node& node, const BranchPlan& b, int64_t task, const Run& run, char* memory) {
  const Shape& y = b.main.grid;
  const Scratch at = scratchOf(b);
  const TileSet& set = *b.set;
  const int64_t bytes = sizeOf(b.spec.compute);
  const int64_t block = task / b.panelGroups, plane = block / b.rowBlocks * b.planes;
  const int64_t row = plane * y.h + block % b.rowBlocks * b.rows;
  const int64_t rowEnd = std::min(row + b.planes * b.rows, std::min((plane + b.planes) * y.h, y.rows()));
  const int64_t first = row * y.w, count = rowEnd * y.w - first;
  const auto [panelBegin, panelEnd] =
      piece(static_cast<int64_t>(b.packed->panels.size()), b.panelGroups, task % b.panelGroups);

  auto** rows = reinterpret_cast<const char**>(memory + at.rows);
  auto** lowRows = reinterpret_cast<const char**>(memory + at.lowRows);
  auto** start = reinterpret_cast<const char**>(memory + at.start);
  char* low = memory + at.low;
  const int64_t lowPitch = set.shape.maxVectors * set.lanes;
  int64_t lowCount = 0;
  pointTo(plan, b.main, bytes, run, first, first + count, rows);
  if (b.low.taps) {
    const Shape& l = b.low.grid;
    const auto lowRow = [&](int64_t r) { return r / y.h * l.h + r % y.h / 2; };
    const int64_t lowFirst = lowRow(row) * l.w;
    lowCount = (lowRow(rowEnd - 1) + 1) * l.w - lowFirst;
    pointTo(plan, b.low, bytes, run, lowFirst, lowFirst + lowCount, lowRows);
    for (int64_t r = row; r < rowEnd; r++)
      for (int64_t x = 0; x < y.w; x++)
        start[(r - row) * y.w + x] = low + (lowRow(r) * l.w + x / 2 - lowFirst) * lowPitch * 4;
  }

  const size_t output = b.spec.outputs[0];
  for (int64_t i = panelBegin; i < panelEnd; i++) {
    const Panel& panel = b.packed->panels[i];
    const ptrdiff_t corner = first * y.c + panel.begin;
    const auto from = [&](void* data, const TensorType& type) {
      return elementsOf(static_cast<char*>(data) + corner * static_cast<ptrdiff_t>(bytesOf(type.dtype)), type);
    };
    Tile tile{};
    if (b.low.taps) {
      tile.rows = lowRows;
      tile.rowStride = lowCount;
      tile.segments = b.low.segments[panel.group].data();
      tile.segmentCount = b.low.segments[panel.group].size();
      tile.weights = plan.weights->memory.data() + panel.low;
      tile.raw = true;
      tile.out.data = low;
      tile.pitch = lowPitch;
      runTiles(set, tile, panel, false, lowCount);
    }
    tile.rows = rows;
    tile.rowStride = count;
    tile.segments = b.main.segments[panel.group].data();
    tile.segmentCount = b.main.segments[panel.group].size();
    tile.weights = plan.weights->memory.data() + panel.weights;
    tile.scale = b.spec.compute == Compute::i8 ? plan.weights->floats(panel.scale) : nullptr;
    tile.bias = plan.weights->floats(panel.bias);
    tile.start = b.low.taps ? start : nullptr;
    tile.raw = false;
    if (b.spec.residual) tile.residual = from(run.inputs[*b.spec.residual], node.inputs[*b.spec.residual]);
    if (!b.spec.residual) tile.residual = {nullptr, node.outputs[output].dtype};
    tile.out = from(run.outputs[output], node.outputs[output]);
    tile.stepsPerUnit = 1 / tile.out.scale;
    tile.pitch = y.c;
    tile.channels = panel.channels;
    tile.low = b.spec.low;
    tile.high = b.spec.high;
    runTiles(set, tile, panel, b.packed->depthwise, count);
    halveBlock(run, b, node, row, rowEnd, panel);
  }
}

// Converts, pads and pools one plane.
void runPrepared(const Prepared& p, const Node& node, const Run& run, int64_t plane) {
  const auto convert = OCTCONV_PICK(convertElements);
  const TensorType& type = node.inputs[p.input];
  const Shape& shape = p.shapes[0];
  const int64_t bytes = sizeOf(p.compute), inGroup = p.from.c / p.groups, group = shape.c / p.groups;
  const auto fromBytes = static_cast<int64_t>(bytesOf(type.dtype));
  const auto planeOf = [&](size_t k) {
    return run.shared + p.offsets[k] + plane * p.shapes[k].h * p.shapes[k].w * shape.c * bytes;
  };
  const char* from = run.in<char>(p.input) + plane * p.from.h * p.from.w * p.from.c * fromBytes;
  char* to = planeOf(0);
  const auto put = [&](int64_t count) {  // elements that lie together on both sides
    convert(elementsOf(const_cast<char*>(from), type), {to, activationOf(p.compute), p.scale, p.zero}, count);
    from += count * fromBytes, to += count * bytes;
  };
  const auto outside = static_cast<char>(p.compute == Compute::i8 ? p.zero : 0);
  const auto fill = [&](int64_t count) {
    std::fill(to, to + count * bytes, outside);
    to += count * bytes;
  };
  fill(p.padding.h * shape.w * shape.c);
  for (int64_t y = 0; y < p.from.h; y++) {
    fill(p.padding.w * shape.c);
    // Converted at the end of their row, then moved to their places from the front.
    const int64_t count = p.from.w * p.groups;
    char* row = to;
    to += count * (group - inGroup) * bytes;
    const char* packed = to;
    put(count * inGroup);
    if (group > inGroup)
      for (int64_t i = 0; i < count; i++, row += group * bytes, packed += inGroup * bytes) {
        std::copy(packed, packed + inGroup * bytes, row);
        std::fill(row + inGroup * bytes, row + group * bytes, outside);
      }
    fill(p.padding.w * shape.c);
  }
  fill(p.padding.h * shape.w * shape.c);
  for (size_t k = 1; k < p.shapes.size(); k++) OCTCONV_PICK(halveRows)
  (activationOf(p.compute), planeOf(k - 1), shape.c, p.shapes[k - 1].h, p.shapes[k - 1].w, planeOf(k), shape.c,
   static_cast<int>(shape.c));
}

// How a branch is cut into tasks; by shape and thread count only.
void split(BranchPlan& b, int threads) {
  const Shape& y = b.main.grid;
  int64_t inputBytes = 0, weightBytes = 0;  // per output pixel; of all panels
  double flops = 0;
  for (const Sum* sum : {&b.main, &b.low})
    for (const TileSource& s : sum->sources) {
      inputBytes += s.shape.c * sizeOf(b.spec.compute) * s.conv.stride.h * s.conv.stride.w / (s.conv.upsample ? 4 : 1);
      weightBytes += y.c * (s.shape.c / s.conv.groups) * s.conv.taps() * sizeOf(b.spec.compute);
      flops += 2. * static_cast<double>(sum->grid.pixels() * y.c * (s.shape.c / s.conv.groups) * s.conv.taps());
    }
  const auto cut = [&](int64_t pixels) {
    // Row pairs that share a low row or a pooled row stay together. Blocks are of nearly equal size: one with the last
    // few rows would read all weights for them.
    const int64_t align = int64_t{1} << std::max<size_t>(b.spec.outputs.size() - 1, b.low.taps ? 1 : 0);
    const int64_t plane = y.h * y.w, count = std::max<int64_t>(1, (plane + pixels / 2) / pixels);
    b.planes = std::clamp<int64_t>(pixels / plane, 1, y.n * y.t);
    b.rows = std::min(y.h, ((y.h + count - 1) / count + align - 1) / align * align);
    b.rowBlocks = (y.h + b.rows - 1) / b.rows;
    b.blocks = (y.n * y.t + b.planes - 1) / b.planes * b.rowBlocks;
  };
  const int64_t wanted = std::max(fewestPixels, blockBytes / std::max<int64_t>(1, inputBytes));
  cut(wanted);
  if (threads == 1) return;
  const int64_t useful =
      std::clamp<int64_t>(static_cast<int64_t>(flops / taskFlops), 1, int64_t{tasksPerThread} * threads);
  const auto groups = [&] {
    return std::clamp<int64_t>((useful + b.blocks - 1) / b.blocks, 1, static_cast<int64_t>(b.packed->panels.size()));
  };
  // More blocks read the weights again, more panel groups the input: the larger stays whole.
  if (b.blocks < useful && (weightBytes < inputBytes * y.pixels() || groups() * b.blocks < useful))
    cut(std::max(fewestPixels, std::min(wanted, y.pixels() / useful)));
  b.panelGroups = groups();
}

}  // namespace

std::shared_ptr<const Packed> packFast(const std::vector<Branch>& branches, const Params& params) {
  auto packed = std::make_shared<PackedWeights>();
  Layout layout;
  for (const Branch& branch : branches) packed->branches.push_back(layOut(branch, params, layout));
  packed->memory = Memory(layout.size());
  std::fill(packed->memory.data(), packed->memory.data() + layout.size(), 0);
  for (size_t b = 0; b < branches.size(); b++)
    packBranch(branches[b], packed->branches[b], params, packed->memory.data());
  return packed;
}

Kernel makeFast(const Node& node, const std::vector<Branch>& branches) {
  const auto unfit = [&] { fail("octConv: the weights given to '", node.name, "' were packed for another layer"); };
  auto plan = std::make_shared<FastPlan>();
  plan->weights = &node.weights<PackedWeights>();
  if (plan->weights->branches.size() != branches.size()) unfit();
  Layout shared;
  size_t threadBytes = 0;
  std::ostringstream text;
  for (size_t i = 0; i < branches.size(); i++) {
    const PackedWeights::PerBranch& packed = plan->weights->branches[i];
    if (packed.compute != branches[i].compute) unfit();
    const TileSet& set = tilesFor(packed.compute);
    BranchPlan b{branches[i], &packed, &set, sumOf(*plan, node, branches[i], packed.depthwise, false, shared),
                 sumOf(*plan, node, branches[i], packed.depthwise, true, shared)};
    const auto words = [&](const Sum& sum) {
      int64_t count = 0;
      for (const Segment& s : sum.segments[0]) count += s.taps * (packed.depthwise ? 1 : s.bytes / 4);
      return count;
    };
    if (words(b.main) != packed.mainWords || words(b.low) != packed.lowWords) unfit();
    if (packed.panels.back().begin + packed.panels.back().channels != b.main.grid.c) unfit();
    split(b, node.threads);
    threadBytes = std::max(threadBytes, scratchOf(b).size);
    const int64_t vectors = packed.panels[0].vectors;
    text << (i ? ", " : "") << (packed.depthwise ? "depthwise " : "tile ")
         << (packed.depthwise ? 4 : set.shape.maxPixels[vectors]) << 'x' << vectors * set.lanes << ' ' << b.blocks
         << " blocks x " << b.panelGroups;
    plan->branches.push_back(std::move(b));
  }
  return {[plan, node](Run& run) {
            int64_t planes = 0, tasks = 0;
            for (const Prepared& p : plan->prepared) planes += p.from.n * p.from.t;
            run.parallel(planes, [&](int64_t task, char*) {
              for (const Prepared& p : plan->prepared) {
                if (task < p.from.n * p.from.t) return runPrepared(p, node, run, task);
                task -= p.from.n * p.from.t;
              }
            });
            for (const BranchPlan& b : plan->branches) tasks += b.tasks();
            run.parallel(tasks, [&](int64_t task, char* scratch) {
              for (const BranchPlan& b : plan->branches) {
                if (task < b.tasks()) return runTask(*plan, node, b, task, run, scratch);
                task -= b.tasks();
              }
            });
          },
          shared.size(), threadBytes, text.str()};
}

}  // namespace octconv
