// octConv on NVIDIA GPUs, the host's part: weights as the kernel (cuda.cu) reads them, and what it is told of a step.
#include "cuda.h"

#include <algorithm>
#include <array>
#include <span>

#include "../../core/threads.h"
#include "../../cuda/items.h"
#include "../../cuda/kernel.h"
#include "../../cuda/means.h"
#include "contract.h"

namespace octconv::cuda {
namespace {

// A source as the kernel on tensor cores sees it.
struct Taps {
  // Few channels, such as those of a picture: those of all taps of a row of the kernel, which lie one after the other
  // if a pixel fills a piece, are the channels of one tap. Zeros are put around them: a few columns. (With two pixels
  // to a piece 7 x 7 taps of stride 2 take half the steps, but multiply the pixel behind a window by 0, which is wrong
  // if that is NaN.)
  bool rows;
  int64_t together;         // taps over time whose channels lie in one pixel: 1, or with `rows` those of the kernel
  int64_t pixel;            // channels that are read: whole pieces
  int64_t count, channels;  // of a tap: whole pixels
  int64_t chunks;           // of a tap

  int64_t steps() const { return count * chunks; }
  bool operator==(const Taps&) const = default;
};

struct CudaBranch : Packed {
  struct Reader {
    int64_t inputs;  // of a group
    Size3 kernel;
    bool upsample;
    Taps taps;
  };
  struct ScaleShift {
    int64_t channels = 0;
    size_t scale = 0, shift = 0;  // offsets in the memory
  };
  Compute compute;
  bool depthwise;    // for octConvDepthwise
  int64_t channels;  // 0 of a gated branch, which fits any
  int64_t groups;
  std::vector<Reader> readers;  // sources as the branch has them
  size_t bias = 0, weights = 0;
  std::vector<ScaleShift> prologues, stores;
  Block memory;
  size_t bytes() const override { return memory.size(); }
};

// Sources in the kernel's order, in which those that are upsampled come first; and their positions in the branch.
std::vector<std::pair<const Source*, size_t>> orderOf(const Branch& branch) {
  std::vector<std::pair<const Source*, size_t>> sources;
  branch.eachSource([&](const Source& s) { sources.emplace_back(&s, sources.size()); });
  std::stable_partition(sources.begin(), sources.end(), [](const auto& each) { return each.first->upsample; });
  return sources;
}

int bytesOf(Compute compute) { return compute == Compute::f32 ? 4 : 2; }
const char* kernelFor(Compute compute) {
  return compute == Compute::f32 ? "octConvTf32" : compute == Compute::f16 ? "octConvF16" : "octConvBf16";
}
int64_t pieceChannels(Compute compute) { return 16 / bytesOf(compute); }
int64_t roundUp(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// The first channel that the unit of a column reads; of `inputs` and `outputs` of a group.
int64_t windowAt(int64_t column, int64_t inputs, int64_t outputs, Compute compute) {
  return firstPiece<int64_t>(firstGroup(column, outputs), inputs, bytesOf(compute)) * pieceChannels(compute);
}
// The most channels that a unit reads.
int64_t windowOf(int64_t groups, int64_t inputs, int64_t outputs, Compute compute) {
  if (groups == 1) return inputs;
  int64_t most = 0;
  for (int64_t first = 0; first < groups * outputs; first += unitColumns) {
    const int64_t last = std::min(first + unitColumns, groups * outputs) - 1;
    most = std::max(most, (last / outputs + 1) * inputs - windowAt(first, inputs, outputs, compute));
  }
  return most;
}

Taps tapsOf(const Source& s, int64_t inputs, int64_t outputs, Compute compute) {
  const int64_t piece = pieceChannels(compute), chunk = chunkBytes / bytesOf(compute);
  const int64_t channels = windowOf(s.groups, inputs, outputs, compute);
  const bool few = s.groups == 1 && channels <= piece;
  const bool rows = few && s.kernel.w > 1 && s.dilation.w == 1 && s.padding.w < s.kernel.w;
  const auto with = [&](int64_t together) -> Taps {
    const int64_t pixel = roundUp(together * channels, piece), padded = rows ? s.kernel.w * pixel : pixel;
    const int64_t count = s.taps() / together / (rows ? s.kernel.w : 1);
    return {rows, together, pixel, count, padded, roundUp(padded, chunk) / chunk};
  };
  // A stem of 5 x 7 x 7 taps on RGB takes 28 steps instead of 70 in 16 bits, and its input twice the memory.
  const Taps one = with(1), all = with(s.kernel.t);
  return rows && all.steps() < one.steps() ? all : one;
}

// What the kernel can compute; the rest of the contract has no kernel yet.
void checkForm(const Branch& branch) {
  const auto refuse = [](const auto& what) { fail("octConv: no kernel for ", what, " on cuda"); };
  size_t sources = 0;
  branch.eachSource([&](const Source& s) {
    sources++;
    if (s.pool > 2) refuse("a source that is pooled more than twice");
  });
  if (branch.compute == Compute::i8) refuse("i8");
  if (sources > mostSources) refuse("more than " + std::to_string(mostSources) + " sources");
  if (branch.stores.size() > mostStores) refuse("more than " + std::to_string(mostStores) + " stores");
  for (const Store& store : branch.stores)
    if (store.pool > 1) refuse("a store that is pooled twice");
}

void checkType(const Gpu& gpu, DType type) {
  if (std::ranges::find(gpu.computes, type) != gpu.computes.end()) return;
  std::string known;
  for (const DType each : gpu.computes) known += (known.empty() ? "" : ", ") + std::string(nameOf(each));
  fail("octConv: no kernel for ", nameOf(type), " on ", gpu.about(), ", wanted ", known);
}

// Whether each output channel is made of one input channel of the same number; a gate is such a weight.
bool isDepthwise(const Branch& branch, const Params& params, int64_t channels) {
  bool depthwise = branch.gated || (branch.groups() > 1 && branch.groups() == channels);
  branch.eachSource([&](const Source& s) { depthwise = depthwise && inputsOf(s, params) == 1 && !s.upsample; });
  return depthwise;
}

uint32_t bitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
// To the nearest of 10 bits, half away from zero, as the GPU rounds what it multiplies.
uint32_t tf32Of(float x) { return x != x ? bitsOf(x) : (bitsOf(x) + 0x1000) & ~uint32_t{0x1fff}; }

// The weights of one source for one unit of columns, [tap][chunk][column][64 bytes], at `to`, which goes on behind
// them.
void putSource(const CudaBranch& packed, const Source& source, const Taps& taps, const Params& params,
               const Affine& affine, int64_t first, char*& to) {
  const int64_t some = std::min<int64_t>(unitColumns, packed.channels - first), inputs = inputsOf(source, params),
                outputs = packed.channels / packed.groups;
  const int64_t window = windowAt(first, inputs, outputs, packed.compute),
                frame = taps.together > 1 ? inputs : taps.pixel;  // channels of it in a pixel
  const TensorType type{operandType(packed.compute), {}};
  const std::vector<float> w =
      weightOf(source, params, packed.channels).floats(first * inputs * source.taps(), some * inputs * source.taps());
  const std::vector<float> scales = weightScalesOf(source, params, packed.channels);
  for (int64_t tap = 0; tap < taps.count; tap++) {
    for (int64_t i = 0; i < taps.channels; i++) {
      const int64_t column = i / taps.pixel, time = i % taps.pixel / frame, at = i % taps.pixel % frame;
      if (time >= taps.together) continue;
      const int64_t of = taps.rows ? (time * source.kernel.h + tap) * source.kernel.w + column : tap;
      const int64_t byte = i * bytesOf(packed.compute), chunk = byte / chunkBytes;
      for (int64_t o = 0; o < some; o++) {
        const int64_t input = window + at - (first + o) / outputs * inputs;  // of its group
        if (input < 0 || input >= inputs) continue;
        const auto factor = static_cast<float>(affine.scale[first + o] * scales[first + o]);
        const float weight = w[(o * inputs + input) * source.taps() + of] * factor;
        char* const element = to + chunk * unitBytes +
                              swizzled(static_cast<int>(o), static_cast<int>(byte % chunkBytes / 16)) + byte % 16;
        if (packed.compute == Compute::f32) {
          const uint32_t bits = tf32Of(weight);
          std::memcpy(element, &bits, 4);
        } else {
          setValue(element, type, 0, weight);
        }
      }
    }
    to += taps.chunks * unitBytes;
  }
}

// The same for octConvDepthwise: [tap][channel], whole pieces of channels.
void putDepthwise(const CudaBranch& packed, const Source& source, const Params& params, const Affine& affine,
                  char*& to) {
  const TensorType type{operandType(packed.compute), {}};
  const std::vector<float> w = weightOf(source, params, packed.channels).floats();
  const std::vector<float> scales = weightScalesOf(source, params, packed.channels);
  for (int64_t tap = 0; tap < source.taps(); tap++) {
    for (int64_t c = 0; c < packed.channels; c++)
      setValue(to, type, c, w[c * source.taps() + tap] * static_cast<float>(affine.scale[c] * scales[c]));
    to += roundUp(packed.channels, pieceChannels(packed.compute)) * bytesOf(packed.compute);
  }
}

std::shared_ptr<const Packed> pack(Gpu& gpu, const Attr& attrs, const Params& params, Crew& crew) {
  const Branch branch = oneBranchOf(attrs);
  checkForm(branch);
  const int64_t channels = outputChannels(branch, params);
  auto packed = std::make_shared<CudaBranch>();
  packed->compute = branch.compute, packed->depthwise = isDepthwise(branch, params, channels);
  packed->channels = channels, packed->groups = branch.groups();
  if (!packed->depthwise) checkType(gpu, operandType(branch.compute));
  const int64_t units = roundUp(channels, unitColumns) / unitColumns;

  std::vector<Affine> affines;
  std::vector<size_t> termOf;  // of each source
  for (const Term& term : branch.terms) {
    termOf.insert(termOf.end(), term.sources.size(), affines.size());
    affines.push_back(affineOf(term, params, channels));
  }

  Layout layout;
  std::vector<std::pair<std::vector<float>, size_t>> vectors;  // what lies where
  const auto place = [&](const std::vector<double>& values, int64_t padded) {
    std::vector<float> floats(values.begin(), values.end());
    floats.resize(static_cast<size_t>(padded), 0);
    const size_t at = layout.add(floats.size() * 4);
    vectors.emplace_back(std::move(floats), at);
    return at;
  };
  const auto placeAffine = [&](const Affine& affine) -> CudaBranch::ScaleShift {
    const auto count = static_cast<int64_t>(affine.scale.size());
    if (count == 0) return {};
    return {count, place(affine.scale, count), place(affine.shift, count)};
  };
  std::vector<double> bias(static_cast<size_t>(channels), 0);
  for (const Affine& affine : affines)
    for (int64_t o = 0; o < channels; o++) bias[o] += affine.shift[o];
  packed->bias = place(bias, units * unitColumns);
  int64_t steps = 0, count = 0;  // of a unit; taps
  branch.eachSource([&](const Source& s) {
    const int64_t inputs = inputsOf(s, params);
    const Taps taps = tapsOf(s, inputs, channels / s.groups, branch.compute);
    packed->readers.push_back({inputs, s.kernel, s.upsample, taps});
    packed->prologues.push_back(placeAffine(affineOf(s.prologue, params)));
    steps += taps.steps(), count += s.taps();
  });
  for (const Store& store : branch.stores) packed->stores.push_back(placeAffine(affineOf(store.activation, params)));
  const int64_t stepsBytes = product(steps, unitBytes);
  const int64_t tapBytes = roundUp(channels, pieceChannels(branch.compute)) * bytesOf(branch.compute);
  packed->weights =
      layout.add(static_cast<size_t>(packed->depthwise ? product(count, tapBytes) : product(stepsBytes, units)));
  if (layout.size() == 0) return packed;  // a gate alone

  const Block pinned(gpu, layout.size(), Block::Where::pinned);
  char* const host = pinned.host();
  std::fill_n(host, pinned.size(), 0);
  for (const auto& [floats, at] : vectors) std::ranges::copy(floats, reinterpret_cast<float*>(host + at));
  const auto order = orderOf(branch);
  if (packed->depthwise) {
    char* to = host + packed->weights;
    for (const auto& [s, i] : order) putDepthwise(*packed, *s, params, affines[termOf[i]], to);
  } else {
    crew.parallel(units, [&](int64_t unit, int) {
      char* to = host + packed->weights + unit * stepsBytes;
      for (const auto& [s, i] : order)
        putSource(*packed, *s, packed->readers[i].taps, params, affines[termOf[i]], unit * unitColumns, to);
    });
  }
  packed->memory = uploaded(gpu, pinned);
  return packed;
}

// --- The step --------------------------------------------------------------------------------------------------------

ActivationArgs activationOf(const Activation& a, const CudaBranch::ScaleShift& at, const CudaBranch& packed) {
  const auto pointer = [&](size_t offset) {
    return at.channels ? reinterpret_cast<const float*>(packed.memory.device() + offset) : nullptr;
  };
  return {pointer(at.scale), pointer(at.shift), a.function ? static_cast<int>(a.function->op) : -1,
          a.slope,           a.least,           a.most};
}

// Weights that were packed for another node are an error here, not a read out of bounds later.
void checkWeights(const Node& node, const Branch& branch, const CudaBranch& packed) {
  const int64_t outputs = shapeOf(branch, node).c;
  bool fits = packed.channels == (branch.gated ? 0 : outputs) && packed.compute == branch.compute &&
              packed.groups == branch.groups() && packed.stores.size() == branch.stores.size();
  size_t i = 0;
  branch.eachSource([&](const Source& s) {
    const int64_t channels = node.in(s.input).c, inputs = channels / s.groups;
    fits = fits && i < packed.readers.size() && packed.readers[i].inputs == inputs &&
           packed.readers[i].kernel == s.kernel && packed.readers[i].upsample == s.upsample &&
           packed.readers[i].taps == tapsOf(s, inputs, outputs / s.groups, branch.compute) &&
           packed.prologues[i].channels == (s.prologue.batchNorm.empty() ? 0 : channels);
    i++;
  });
  fits = fits && i == packed.readers.size();
  for (size_t k = 0; fits && k < branch.stores.size(); k++)
    fits = packed.stores[k].channels == (branch.stores[k].activation.batchNorm.empty() ? 0 : outputs);
  if (!fits) fail("octConv: the weights given to '", node.name, "' were packed for another layer");
}

// Values whose means are wanted: they lie in scratch, until a launch of their own computes them.
struct Means {
  TensorType type;
  int64_t at;
  size_t output;
};

// A step in the making.
struct Making {
  const PlacedNode& placed;
  Made made;
  Layout scratch;
  std::vector<Means> means;

  int64_t take(int64_t bytes) { return placed.scratch + static_cast<int64_t>(scratch.add(static_cast<size_t>(bytes))); }
};

// P^pool of the source's prologue in the type that is multiplied, which a launch writes to scratch for an output of
// size `y`: the taps over time that lie together, zeros behind the channels, and with `rows` around the columns as far
// as windows go.
TensorArgs prepare(Making& making, const Branch& branch, const Source& s, const CudaBranch& packed,
                   const CudaBranch::ScaleShift& prologue, const Taps& taps, const Shape& y) {
  const TensorType& type = making.placed.node.inputs[s.input];
  const int64_t piece = pieceChannels(branch.compute);
  PrepareArgs args{};
  args.x = making.placed.input(s.input);
  args.n = intOf(type.shape.n, "images");
  args.pool = static_cast<int>(s.pool);
  args.dtype = operandType(branch.compute);
  args.prologue = activationOf(s.prologue, prologue, packed);
  TensorType to{operandType(branch.compute), halved(type.shape, s.pool)};
  args.columns = static_cast<int>(to.shape.w);
  args.taps = static_cast<int>(taps.together), args.stride = 1;
  if (taps.rows) {
    const int64_t outputs = s.upsample ? half(y.w) : y.w;
    args.left = static_cast<int>(s.padding.w);
    to.shape.w = std::max((outputs - 1) * s.stride.w + s.kernel.w, s.padding.w + to.shape.w);
  }
  if (taps.together > 1) {
    to.shape.t = y.t, to.shape.c = product(taps.together, to.shape.c);
    args.stride = static_cast<int>(s.stride.t), args.padding = static_cast<int>(s.padding.t);
    args.dilation = static_cast<int>(s.dilation.t);
  }
  to.gap = to.pad = roundUp(to.shape.c, piece) - to.shape.c;
  args.y = tensorOf(to, making.take(product(to.shape.pixels(), to.pitch(), bytesOf(branch.compute))));
  making.made.launches.push_back(launchItems("octConvPrepare", product(to.shape.pixels(), to.pitch() / piece), args));
  return args.y;
}

SourceArgs sourceOf(Making& making, const Branch& branch, const Source& s, const CudaBranch& packed, size_t position,
                    const Shape& y) {
  const CudaBranch::Reader& reader = packed.readers[position];
  const Taps& taps = reader.taps;
  const TensorType& type = making.placed.node.inputs[s.input];
  const int64_t at = making.placed.inputs[s.input];
  const bool asIs = s.prologue.isIdentity() && s.pool == 0;
  SourceArgs args{};
  args.kernel = extentOf(s.kernel), args.stride = extentOf(s.stride);
  args.padding = extentOf(s.padding), args.dilation = extentOf(s.dilation);
  args.upsample = s.upsample;
  const bool direct = asIs && !taps.rows && type.dtype == operandType(branch.compute) && hasWholePieces(type, at);
  args.x = direct ? tensorOf(type, at) : prepare(making, branch, s, packed, packed.prologues[position], taps, y);
  const Extent& size = args.x.size;
  const int64_t pixels = product(type.shape.n, size.t, size.h, size.w);
  atMost(int64_t{UINT32_MAX}, (args.x.at + product(pixels, args.x.pitch, bytesOf(branch.compute))) / 16,
         "pieces of 16 bytes of a run's memory");
  args.x.channels =
      static_cast<int>(s.groups > 1 ? roundUp(type.shape.c, pieceChannels(branch.compute)) : taps.channels);
  args.inputs = static_cast<int>(reader.inputs);
  args.window = static_cast<int>(taps.channels * bytesOf(branch.compute));
  args.chunks = static_cast<int>(taps.chunks);
  if (taps.rows) args.kernel.w = 1, args.padding.w = 0;
  if (taps.together > 1) args.kernel.t = args.stride.t = 1, args.padding.t = 0;
  return args;
}

BranchArgs argumentsOf(Making& making, const Branch& branch, const CudaBranch& packed) {
  const PlacedNode& placed = making.placed;
  const Shape y = shapeOf(branch, placed.node);
  BranchArgs args{};
  args.n = intOf(y.n, "images");
  args.size = extentOf({y.t, y.h, y.w});
  args.channels = static_cast<int>(y.c);
  args.groups = packed.depthwise ? 1 : static_cast<int>(packed.groups);
  args.weights = reinterpret_cast<const char*>(packed.memory.device() + packed.weights);
  if (branch.gated) {
    args.gated = true, args.sources = 1;
    args.source[0].x = placed.input(branch.gated->input), args.gate = placed.input(branch.gated->gate);
  } else {
    args.bias = reinterpret_cast<const float*>(packed.memory.device() + packed.bias);
  }
  if (branch.residual) {
    args.hasResidual = true;
    args.residual = placed.input(*branch.residual);
  }
  for (const auto& [s, position] : orderOf(branch)) {
    args.phased = args.phased || s->upsample;
    args.source[args.sources++] = sourceOf(making, branch, *s, packed, position, y);
  }
  for (size_t k = 0; k < branch.stores.size(); k++) {
    const Store& store = branch.stores[k];
    args.phased = args.phased || store.pool > 0;
    TensorArgs to;
    if (store.mean) {
      const TensorType type{DType::f32, y};
      making.means.push_back({type, making.take(static_cast<int64_t>(type.bytes())), store.output});
      to = tensorOf(type, making.means.back().at);
    } else {
      to = placed.output(store.output);
    }
    args.storedChannels = std::max(args.storedChannels, to.channels + to.pad);
    args.store[args.stores++] = {to, static_cast<int>(store.pool),
                                 activationOf(store.activation, packed.stores[k], packed)};
  }
  return args;
}

int64_t stepsOf(const BranchArgs& branch) {
  int64_t steps = 0;
  for (int i = 0; i < branch.sources; i++)
    steps += int64_t{branch.source[i].chunks} * branch.source[i].kernel.t * branch.source[i].kernel.h *
             branch.source[i].kernel.w;
  return steps;
}

// How blocks share a branch.
struct Share {
  int tile;                            // of `tiles`
  int64_t columnTiles, count, splits;  // tiles, and blocks of each

  int64_t blocks() const { return product(count, splits); }
  int64_t bytesOfSums() const {  // that splits write
    return splits > 1 ? product(blocks(), 4 * tiles[tile].lows, tiles[tile].columns, sizeof(float)) : 0;
  }
};

Share shareOf(const BranchArgs& branch, int tile, int64_t splits) {
  constexpr int64_t leastSteps = 4;  // of a block: its first copies take as long
  const Extent& size = branch.size;
  const int64_t pixels = branch.phased ? product(branch.n, size.t, half(size.h), half(size.w)) * 4
                                       : product(branch.n, size.t, size.h, size.w);
  const int64_t rows = 4 * tiles[tile].lows, columns = tiles[tile].columns;
  const int64_t columnTiles = roundUp(branch.channels, columns) / columns;
  return {tile, columnTiles, product(roundUp(pixels, rows) / rows, columnTiles),
          std::max<int64_t>(1, std::min(splits, stepsOf(branch) / leastSteps))};
}

// An estimate, in clocks of a multiprocessor: a step takes what the tensor cores take for its products, or what its
// operands take from L2; all blocks take as long as the longest one, as often as there are more of them than
// multiprocessors.
int64_t clocksOf(std::span<const BranchArgs> branches, std::span<const Share> shares, const Gpu& gpu) {
  constexpr int64_t bytesPerClock = 32;   // about
  constexpr int64_t chunkProducts = 32;   // of an element in 16 bits; in tf32 half as many take as long
  constexpr int64_t secondLaunch = 2000;  // about 1.5 us
  const int64_t multiprocessors = gpu.multiprocessors;
  int64_t work = 0, longest = 1, bytesOfSums = 0;
  for (size_t b = 0; b < branches.size(); b++) {
    const Share& share = shares[b];
    const int64_t rows = 4 * tiles[share.tile].lows, columns = tiles[share.tile].columns;
    const int64_t step =
        std::max(rows * columns * chunkProducts / gpu.fmaPerClock, (rows + columns) * chunkBytes / bytesPerClock);
    const int64_t block = (stepsOf(branches[b]) + share.splits - 1) / share.splits * step;
    work += block * share.blocks(), longest = std::max(longest, block), bytesOfSums += share.bytesOfSums();
  }
  const int64_t rounds = roundUp(work, multiprocessors * longest) / (multiprocessors * longest);
  const int64_t sums = 2 * bytesOfSums / (bytesPerClock * multiprocessors);
  return rounds * longest + (bytesOfSums ? sums + secondLaunch : 0);
}

// The tiles that the branches of a launch may have, larger ones first: all the largest one, for which sm_75 has neither
// room nor a kernel, or any of the others; or all that of groups.
std::vector<std::array<int, mostBranches>> pairsOfTiles(const Gpu& gpu, bool grouped) {
  if (grouped) return {{groupedTile, groupedTile}};
  std::vector<std::array<int, mostBranches>> pairs{{largestTile, largestTile}};
  for (int a = largestTile - 1; a >= 0; a--)
    for (int b = largestTile - 1; b >= 0; b--) pairs.push_back({a, b});
  std::erase_if(pairs, [&](const auto& pair) {
    return std::ranges::any_of(
        pair, [&](int tile) { return static_cast<size_t>(sharedBytes(tiles[tile])) > gpu.sharedBytes; });
  });
  if (pairs.empty()) fail("octConv: no tile fits into the shared memory of ", gpu.about());
  return pairs;
}

// Chooses tiles, and how many blocks share one, for the branches of a launch.
void chooseTiles(Making& making, std::span<BranchArgs> branches, bool grouped) {
  const Gpu& gpu = making.placed.gpu;
  const auto pairs = pairsOfTiles(gpu, grouped);
  int64_t least = INT64_MAX;
  std::vector<Share> chosen;
  for (const int64_t splits : {1, 2, 3, 4, 6, 8, 12, 16, 24, 32})
    for (const auto& pair : pairs) {
      std::vector<Share> shares;
      for (size_t b = 0; b < branches.size(); b++) shares.push_back(shareOf(branches[b], pair[b], splits));
      if (const int64_t clocks = clocksOf(branches, shares, gpu); clocks < least) least = clocks, chosen = shares;
    }
  for (size_t b = 0; b < branches.size(); b++) {
    BranchArgs& branch = branches[b];
    const Share& share = chosen[b];
    branch.tile = share.tile;
    branch.columnTiles = static_cast<int>(share.columnTiles);
    branch.splits = static_cast<int>(share.splits);
    branch.blocks = intOf(share.blocks(), "blocks");
    if (share.splits == 1) continue;
    branch.sumBlocks = intOf(product(share.count, partsOf(tiles[share.tile])), "blocks");
    branch.partials = making.take(share.bytesOfSums());
  }
}

// Of octConvDepthwise for a branch.
int depthwiseBlocks(const BranchArgs& branch, Compute compute) {
  const Extent& size = branch.size;
  const int64_t pieces = roundUp(branch.storedChannels, pieceChannels(compute)) / pieceChannels(compute);
  const int64_t items = product(branch.n, size.t, half(size.h), half(size.w), pieces);
  atMost(int64_t{UINT32_MAX}, items, "pieces of 16 bytes of a value");
  return static_cast<int>(roundUp(items, depthwiseThreads) / depthwiseThreads);
}

// Adds what the blocks of a branch multiply and copy.
void count(const BranchArgs& branch, Compute compute, LaunchInfo& launch) {
  const Tile& tile = tiles[branch.tile];
  std::string about = std::to_string(4 * tile.lows) + "x" + std::to_string(tile.columns);
  if (branch.splits > 1) about.append("/").append(std::to_string(branch.splits));
  if (launch.tile.empty()) launch.tile = about;
  if (launch.tile != about) launch.tile.append("+").append(about);
  for (int i = 0; i < branch.sources; i++) {
    const SourceArgs& s = branch.source[i];
    const int64_t steps = product(branch.blocks / branch.splits, s.kernel.t, s.kernel.h, s.kernel.w, s.chunks);
    const int64_t rows = s.upsample ? tile.lows : 4 * tile.lows;
    launch.multiplyAdds += product(steps, rows, tile.columns, chunkBytes / bytesOf(compute));
    launch.operandBytes += product(steps, rows + tile.columns, chunkBytes);
  }
}

OctConvArgs together(std::span<const BranchArgs> branches) {
  OctConvArgs args{};
  std::ranges::copy(branches, args.branch);
  return args;
}

void launchDepthwise(Made& made, std::span<const BranchArgs> branches) {
  int blocks = 0;
  for (const BranchArgs& branch : branches) blocks = intOf(int64_t{blocks} + branch.blocks, "blocks");
  made.algorithm = "octConvDepthwise, " + std::to_string(blocks) + " blocks";
  made.launches.push_back(launchOf("octConvDepthwise", static_cast<unsigned>(blocks), depthwiseThreads,
                                   depthwiseSharedBytes, together(branches)));
}

void launchTiles(Making& making, std::span<BranchArgs> branches, Compute compute) {
  Made& made = making.made;
  const bool grouped = std::ranges::any_of(branches, [](const BranchArgs& branch) { return branch.groups > 1; });
  chooseTiles(making, branches, grouped);
  bool large = false;
  int shared = 0, places = 0, blocks = 0, sumBlocks = 0;
  for (const BranchArgs& branch : branches) {
    const Tile& tile = tiles[branch.tile];
    large = large || branch.tile == largestTile;
    shared = std::max(shared, sharedBytes(tile)), places = std::max(places, placesBytes(tile));
    blocks = intOf(int64_t{blocks} + branch.blocks, "blocks"), sumBlocks += branch.sumBlocks;
  }
  const OctConvArgs args = together(branches);
  const std::string kernel = std::string(kernelFor(compute)) + (grouped ? "Grouped" : large ? "Large" : "");
  made.algorithm += (made.algorithm.empty() ? "" : " and ") + kernel + ", " + std::to_string(blocks) + " blocks";
  made.launches.push_back(launchOf(kernel, static_cast<unsigned>(blocks), blockThreads, shared, args));
  for (const BranchArgs& branch : branches) count(branch, compute, made.launches.back());
  if (sumBlocks > 0)
    made.launches.push_back(launchOf("octConvSums", static_cast<unsigned>(sumBlocks), blockThreads, places, args));
}

Made make(const PlacedNode& placed) {
  const std::vector<Branch> branches = branchesOf(placed.node.attrs);
  if (branches.size() > mostBranches) fail("octConv: no kernel for ", branches.size(), " branches on cuda");
  Making making{placed, {}, {}, {}};
  std::vector<BranchArgs> tiled, depthwise;
  Compute compute{};  // of those in tiles
  for (size_t b = 0; b < branches.size(); b++) {
    const Branch& branch = branches[b];
    const auto& packed = placed.node.weights<CudaBranch>(b);
    checkForm(branch);
    checkWeights(placed.node, branch, packed);
    const BranchArgs args = argumentsOf(making, branch, packed);
    if (packed.depthwise) {
      depthwise.push_back(args);
      depthwise.back().blocks = depthwiseBlocks(args, branch.compute);
      continue;
    }
    if (!tiled.empty() && branch.compute != compute) fail("octConv: no kernel for branches of two types on cuda");
    compute = branch.compute;
    atMost(UINT16_MAX, args.size.h, "rows"), atMost(UINT16_MAX, args.size.w, "columns");  // see Place
    tiled.push_back(args);
  }
  if (!depthwise.empty()) launchDepthwise(making.made, depthwise);
  if (!tiled.empty()) launchTiles(making, tiled, compute);
  Made& made = making.made;
  for (const Means& m : making.means) made.launches.push_back(meansOf(m.type, m.at, placed.outputs[m.output]));
  made.scratchBytes = making.scratch.size();
  made.writesPads = true;
  return made;
}

// Which taps lie together depends on dilation and padding too.
std::string cudaFormatOf(const Attr& attrs) {
  std::string format = formatOf(attrs);
  oneBranchOf(attrs).eachSource([&](const Source& s) {
    format += " dilation " + std::to_string(s.dilation.w) + (s.padding.w < s.kernel.w ? "" : " wide padding");
  });
  return format;
}

const Registered<Kernels> kernels{"octConv", {make, floats, pack, cudaFormatOf, true}};

}  // namespace
}  // namespace octconv::cuda
