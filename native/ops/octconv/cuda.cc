// octConv on NVIDIA GPUs, the host's part: weights as the kernel (cuda.cu) reads them, and what it is told of a step.
#include "cuda.h"

#include <algorithm>

#include "../../core/threads.h"
#include "../../cuda/items.h"
#include "../../cuda/kernel.h"
#include "../../cuda/means.h"
#include "contract.h"

namespace octconv::cuda {
namespace {

struct CudaBranch : Packed {
  struct Reader {
    int64_t channels, taps;  // of a group
  };
  struct ScaleShift {
    int64_t channels = 0;
    size_t scale = 0, shift = 0;  // offsets in the memory
  };
  Compute compute;
  bool plain;        // for octConvPlain
  int64_t channels;  // 0 of a gated branch, which fits any
  int64_t groups;
  int columns;
  std::vector<Reader> readers;  // sources as the branch has them
  size_t bias = 0, weights = 0;
  std::vector<ScaleShift> prologues, stores;
  Block memory;
  size_t bytes() const override { return memory.size(); }
};

// Sources in the kernel's order: those that are upsampled come first.
std::vector<const Source*> orderOf(const Branch& branch) {
  std::vector<const Source*> sources;
  branch.eachSource([&](const Source& s) { sources.push_back(&s); });
  std::stable_partition(sources.begin(), sources.end(), [](const Source* s) { return s->upsample; });
  return sources;
}

int bytesOf(Compute compute) { return compute == Compute::bf16 ? 2 : 4; }
int64_t chunkChannels(Compute compute) { return chunkBytes / bytesOf(compute); }
int64_t chunksOf(Compute compute, int64_t channels) {
  return (channels + chunkChannels(compute) - 1) / chunkChannels(compute);
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

// Tensor cores multiply all inputs with all outputs.
bool isPlain(const Branch& branch) { return branch.gated || branch.groups() > 1; }

uint32_t bitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
// To the nearest of 10 bits, half away from zero, as the GPU rounds what it multiplies.
uint32_t tf32Of(float x) { return (bitsOf(x) + 0x1000) & ~uint32_t{0x1fff}; }

// The weights of one source for one column tile, [tap][chunk][column][64 bytes], at `to`, which goes on behind them.
void putSource(const CudaBranch& packed, const Source& source, const Params& params, const Affine& affine,
               int64_t first, char*& to) {
  const int64_t some = std::min<int64_t>(packed.columns, packed.channels - first), inputs = inputsOf(source, params),
                taps = source.taps(), each = chunkChannels(packed.compute), chunks = chunksOf(packed.compute, inputs);
  const std::vector<float> w =
      weightOf(source, params, packed.channels).floats(first * inputs * taps, some * inputs * taps);
  const std::vector<float> scales = weightScalesOf(source, params, packed.channels);
  for (int64_t tap = 0; tap < taps; tap++)
    for (int64_t chunk = 0; chunk < chunks; chunk++, to += packed.columns * chunkBytes)
      for (int64_t o = 0; o < some; o++)
        for (int64_t i = 0; i < std::min(each, inputs - chunk * each); i++) {
          const auto factor = static_cast<float>(affine.scale[first + o] * scales[first + o]);
          const float x = w[(o * inputs + chunk * each + i) * taps + tap] * factor;
          const int64_t byte = i * bytesOf(packed.compute);
          char* const element = to + swizzled(static_cast<int>(o), static_cast<int>(byte / 16)) + byte % 16;
          if (packed.compute == Compute::bf16) {
            const BFloat16 narrow = bfloat16Of(x);
            std::memcpy(element, &narrow, 2);
          } else {
            const uint32_t bits = tf32Of(x);
            std::memcpy(element, &bits, 4);
          }
        }
}

// The same for octConvPlain: f32 [tap][input of a group][channel].
void putPlainSource(const CudaBranch& packed, const Source& source, const Params& params, const Affine& affine,
                    float*& to) {
  const int64_t inputs = inputsOf(source, params), taps = source.taps(), channels = packed.channels;
  const std::vector<float> w = weightOf(source, params, channels).floats();
  const std::vector<float> scales = weightScalesOf(source, params, channels);
  for (int64_t tap = 0; tap < taps; tap++)
    for (int64_t i = 0; i < inputs; i++)
      for (int64_t o = 0; o < channels; o++) {
        const float x = w[(o * inputs + i) * taps + tap] * static_cast<float>(affine.scale[o] * scales[o]);
        *to++ = packed.compute == Compute::bf16 ? floatOf(bfloat16Of(x)) : x;
      }
}

std::shared_ptr<const Packed> pack(Gpu& gpu, const Attr& attrs, const Params& params, Crew& crew) {
  const Branch branch = oneBranchOf(attrs);
  checkForm(branch);
  const int64_t channels = outputChannels(branch, params);
  auto packed = std::make_shared<CudaBranch>();
  packed->compute = branch.compute, packed->plain = isPlain(branch);
  packed->channels = channels, packed->groups = branch.groups();
  packed->columns = channels > 32 ? 64 : 32;
  const int64_t tiles = (channels + packed->columns - 1) / packed->columns, all = tiles * packed->columns;

  std::vector<Affine> affines;
  std::map<const Source*, const Affine*> affineOfSource;
  for (const Term& term : branch.terms) affines.push_back(affineOf(term, params, channels));
  for (size_t t = 0; t < affines.size(); t++)
    for (const Source& s : branch.terms[t].sources) affineOfSource[&s] = &affines[t];

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
  packed->bias = place(bias, all);
  int64_t steps = 0, each = 0;  // of a tile; weights of a channel
  branch.eachSource([&](const Source& s) {
    packed->readers.push_back({inputsOf(s, params), s.taps()});
    packed->prologues.push_back(placeAffine(affineOf(s.prologue, params)));
    steps += s.taps() * chunksOf(branch.compute, inputsOf(s, params));
    each += s.taps() * inputsOf(s, params);
  });
  for (const Store& store : branch.stores) packed->stores.push_back(placeAffine(affineOf(store.activation, params)));
  const int64_t tileBytes = product(steps, packed->columns, chunkBytes);
  const int64_t bytes = packed->plain ? product(each, channels, sizeof(float)) : product(tileBytes, tiles);
  packed->weights = layout.add(static_cast<size_t>(bytes));
  if (layout.size() == 0) return packed;  // a gate alone

  const Block pinned(gpu, layout.size(), Block::Where::pinned);
  char* const host = pinned.host();
  std::fill_n(host, pinned.size(), 0);
  for (const auto& [floats, at] : vectors) std::memcpy(host + at, floats.data(), floats.size() * 4);
  const std::vector<const Source*> order = orderOf(branch);
  if (packed->plain) {
    auto* to = reinterpret_cast<float*>(host + packed->weights);
    for (const Source* s : order) putPlainSource(*packed, *s, params, *affineOfSource.at(s), to);
    packed->memory = uploaded(gpu, pinned);
    return packed;
  }
  crew.parallel(tiles, [&](int64_t tile, int) {
    char* to = host + packed->weights + tile * tileBytes;
    for (const Source* s : order) putSource(*packed, *s, params, *affineOfSource.at(s), tile * packed->columns, to);
  });
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

// Whether pieces of 16 bytes can be copied as they are: all of them lie within x's own channels.
bool isDirect(const Source& s, const TensorType& type, Compute compute, int64_t at) {
  const int64_t bytes = bytesOf(compute);
  return s.prologue.isIdentity() && s.pool == 0 && type.dtype == octconv::activationOf(compute) &&
         type.pitch() * bytes % 16 == 0 && type.shape.c * bytes % 16 == 0 && at % 16 == 0;
}

// Weights that were packed for another node are an error here, not a read out of bounds later.
void checkWeights(const Node& node, const Branch& branch, const CudaBranch& packed) {
  const int64_t outputs = shapeOf(branch, node).c;
  bool fits = packed.channels == (branch.gated ? 0 : outputs) && packed.compute == branch.compute &&
              packed.groups == branch.groups() && packed.stores.size() == branch.stores.size();
  size_t i = 0;
  branch.eachSource([&](const Source& s) {
    const int64_t channels = node.in(s.input).c;
    fits = fits && i < packed.readers.size() && packed.readers[i].channels == channels / s.groups &&
           packed.readers[i].taps == s.taps() &&
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

BranchArgs argumentsOf(const PlacedNode& placed, const Branch& branch, const CudaBranch& packed, Layout& scratch,
                       std::vector<Means>& means) {
  const Node& node = placed.node;
  const Shape y = shapeOf(branch, node);
  BranchArgs args{};
  args.n = intOf(y.n, "images");
  args.size = {intOf(y.t, "frames"), static_cast<int>(y.h), static_cast<int>(y.w)};
  args.channels = static_cast<int>(y.c);
  args.columns = packed.columns;
  args.weights = reinterpret_cast<const char*>(packed.memory.device() + packed.weights);
  if (!branch.gated) args.bias = reinterpret_cast<const float*>(packed.memory.device() + packed.bias);
  if (branch.residual) {
    args.hasResidual = true;
    args.residual = placed.input(*branch.residual);
  }
  std::map<const Source*, size_t> positions;
  branch.eachSource([&](const Source& s) { positions.emplace(&s, positions.size()); });
  for (const Source* s : orderOf(branch)) {
    const TensorType& type = node.inputs[s->input];
    const int64_t at = placed.inputs[s->input];
    args.phased = args.phased || s->upsample;
    args.source[args.sources++] = {tensorOf(type, at),
                                   extentOf(s->kernel),
                                   extentOf(s->stride),
                                   extentOf(s->padding),
                                   extentOf(s->dilation),
                                   static_cast<int>(chunksOf(branch.compute, type.shape.c)),
                                   s->upsample,
                                   isDirect(*s, type, branch.compute, at),
                                   static_cast<int>(s->pool),
                                   activationOf(s->prologue, packed.prologues[positions.at(s)], packed)};
  }
  for (size_t k = 0; k < branch.stores.size(); k++) {
    const Store& store = branch.stores[k];
    args.phased = args.phased || store.pool > 0;
    TensorArgs to;
    if (store.mean) {
      const TensorType type{DType::f32, y};
      means.push_back({type, placed.scratch + static_cast<int64_t>(scratch.add(type.bytes())), store.output});
      to = tensorOf(type, means.back().at);
    } else {
      to = placed.output(store.output);
    }
    args.store[args.stores++] = {to, static_cast<int>(store.pool),
                                 activationOf(store.activation, packed.stores[k], packed)};
  }
  const int64_t groups = args.phased ? product(y.n, y.t, half(y.h), half(y.w)) : y.pixels();
  const int64_t rowTiles = (groups + (args.phased ? 31 : tileRows - 1)) / (args.phased ? 32 : tileRows);
  args.columnTiles = static_cast<int>((y.c + packed.columns - 1) / packed.columns);
  args.tiles = intOf(product(rowTiles, args.columnTiles), "tiles");
  return args;
}

Launch plainLaunch(const PlacedNode& placed, const Branch& branch, const BranchArgs& args) {
  PlainArgs plain{
      args, static_cast<int>(branch.groups()), branch.compute == Compute::bf16, branch.gated.has_value(), {}, {}};
  if (branch.gated) plain.x = placed.input(branch.gated->input), plain.gate = placed.input(branch.gated->gate);
  const Shape y = shapeOf(branch, placed.node);
  return launchItems("octConvPlain", args.phased ? halved(y).elements() : y.elements(), plain);
}

// Adds what the blocks of a branch multiply and copy.
void count(const BranchArgs& branch, Compute compute, LaunchInfo& launch) {
  const std::string tile = std::to_string(tileRows) + "x" + std::to_string(branch.columns);
  if (launch.tile.empty()) launch.tile = tile;
  if (launch.tile != tile) launch.tile += "+" + tile;
  for (int i = 0; i < branch.sources; i++) {
    const SourceArgs& s = branch.source[i];
    const int64_t steps = product(branch.tiles, s.kernel.t, s.kernel.h, s.kernel.w, s.chunks);
    const int64_t rows = s.upsample ? tileRows / 4 : tileRows;
    launch.multiplyAdds += product(steps, rows, branch.columns, chunkChannels(compute));
    launch.operandBytes += product(steps, rows + branch.columns, chunkBytes);
  }
}

Made make(const PlacedNode& placed) {
  const std::vector<Branch> branches = branchesOf(placed.node.attrs);
  if (branches.size() > mostBranches) fail("octConv: no kernel for ", branches.size(), " branches on cuda");
  Made made;
  OctConvArgs args{};
  size_t together = 0;  // branches of the launch on tensor cores
  int64_t blocks = 0;
  int columns = 0;
  Compute compute{};
  Layout scratch;
  std::vector<Means> means;
  for (size_t b = 0; b < branches.size(); b++) {
    const Branch& branch = branches[b];
    const auto& packed = placed.node.weights<CudaBranch>(b);
    checkForm(branch);
    checkWeights(placed.node, branch, packed);
    const BranchArgs branchArgs = argumentsOf(placed, branch, packed, scratch, means);
    if (packed.plain) {
      made.launches.push_back(plainLaunch(placed, branch, branchArgs));
      made.algorithm = "octConvPlain";
      continue;
    }
    if (together > 0 && branch.compute != compute) fail("octConv: no kernel for branches of two types on cuda");
    compute = branch.compute;
    args.branch[together++] = branchArgs;
    blocks += branchArgs.tiles;
    columns = std::max(columns, packed.columns);
  }
  if (together > 0) {
    const std::string kernel = compute == Compute::bf16 ? "octConvBf16" : "octConvTf32";
    made.launches.push_back(
        launchOf(kernel, static_cast<unsigned>(intOf(blocks, "tiles")), blockThreads, sharedBytes(columns), args));
    for (size_t b = 0; b < together; b++) count(args.branch[b], compute, made.launches.back());
    made.algorithm += (made.algorithm.empty() ? "" : " and ") + kernel + ", " + std::to_string(blocks) + " tiles";
  }
  made.scratchBytes = scratch.size();
  for (const Means& m : means) made.launches.push_back(meansOf(m.type, m.at, placed.outputs[m.output]));
  return made;
}

const Registered<Kernels> kernels{"octConv", {make, {DType::f32, DType::bf16}, pack, formatOf, true}};

}  // namespace
}  // namespace octconv::cuda
