// Weights of octConv as the tiles of the CPU read them: batch normalisation folded in, in panels of output channels,
// [tap][word of input channels][output channel].
#include "cpu.h"

namespace octconv {
namespace {

// Puts the weights of element `i` of a word for `channels` of `width` output channels (see Words in tile.h); they lie
// `stride` apart.
void putWeights(Words words, char* word, int64_t width, int64_t channels, int64_t i, const float* w, int64_t stride) {
  const auto put = [&](auto* to, int64_t step, auto&& convert) {
    for (int64_t c = 0; c < channels; c++) to[c * step] = convert(w[c * stride]);
  };
  switch (words) {
    case Words::f32:
      return put(reinterpret_cast<float*>(word), 1, [](float x) { return x; });
    case Words::bf16:
      return put(reinterpret_cast<BFloat16*>(word) + i, 2, bfloat16Of);
    case Words::bf16AsF32:
      return put(reinterpret_cast<float*>(word) + i * width, 1, [](float x) { return floatOf(bfloat16Of(x)); });
    case Words::u8:
      return put(reinterpret_cast<int8_t*>(word) + i, 4, [](float x) { return static_cast<int8_t>(x); });
    case Words::i16:
      return put(reinterpret_cast<int16_t*>(word) + i, 2, [](float x) { return static_cast<int16_t>(x); });
    case Words::u8AsI16:
      return put(reinterpret_cast<int16_t*>(word) + i % 2 * width * 2 + i / 2, 2,
                 [](float x) { return static_cast<int16_t>(x); });
  }
}

// Splits a group's channels into panels of nearly equal vectors, about as many as are best; across groups all channels
// into vectors.
std::vector<Panel> panelsOf(const PackedBranch& packed) {
  const TileSet& set = *packed.set;
  const auto& [best, most, pixels] = set.shape;
  std::vector<Panel> panels;
  if (const int64_t each = packed.acrossGroups) {
    for (int64_t begin = 0; begin < packed.channels; begin += each)
      panels.push_back({begin, std::min(each, packed.channels - begin), 1, begin / each, 0, 0, 0, 0});
    return panels;
  }
  for (int64_t g = 0; g < packed.groups; g++) {
    const int64_t inGroup = packed.channels / packed.groups, vectors = (inGroup + set.lanes - 1) / set.lanes;
    const int64_t count = std::max((vectors + most - 1) / most, vectors / best);
    for (int64_t i = 0; i < count; i++) {
      const auto [first, last] = piece(vectors, count, i);
      const int64_t begin = first * set.lanes;
      panels.push_back({g * inGroup + begin, std::min(inGroup, last * set.lanes) - begin, last - first, g, 0, 0, 0, 0});
    }
  }
  return panels;
}

// So many products of bytes fit into the 24 bits of f32 whatever they are.
constexpr int64_t mostExact = 512;

// Elements that a lane takes at once of the inputs of its group: words, where these are whole and have a dot product.
int64_t takenOf(const Branch& branch, const Params& params, const TileSet& set) {
  const int64_t word = perPackedWord(branch);
  bool whole = set.groupedWords[1] != nullptr;
  branch.eachSource([&](const Source& s) { whole = whole && inputsOf(s, params) % word == 0; });
  return whole ? word : 1;
}

// How many channels of several groups a vector has where those of one fill half of it or less: so many that what they
// read lies within two vectors. 0: those of one are better.
int64_t acrossGroupsOf(const Branch& branch, const Params& params, const TileSet& set, int64_t channels,
                       int64_t taken) {
  const int64_t groups = branch.groups(), outputs = channels / groups;
  if (groups == 1 || branch.winograd || set.mostGrouped == 0) return 0;
  int64_t products = 0;
  branch.eachSource([&](const Source& s) { products += inputsOf(s, params) * s.taps(); });
  if (branch.compute == Compute::i8 && taken == 1 && products > mostExact) return 0;
  for (int64_t each = set.lanes; each >= 2 * outputs; each /= 2) {
    const int64_t spanned = each % outputs == 0 ? each / outputs : (each - 1) / outputs + 2;
    bool fits = true;
    branch.eachSource([&](const Source& s) { fits = fits && spanned * inputsOf(s, params) / taken <= 2 * set.lanes; });
    if (fits) return each;
  }
  return 0;
}

// Whether i8 weights do not do as i8: -128 changes its sign with a negative batch normalisation, and where pairs of
// products saturate, two weights of neighbouring input channels add up to more than 128.
bool needsShorts(const Branch& branch, const Params& params, const std::vector<Affine>& affines, bool saturates) {
  const int64_t outputs = outputChannels(branch, params);
  for (size_t t = 0; t < branch.terms.size(); t++)
    for (const Source& s : branch.terms[t].sources) {
      const std::vector<float> w = weightOf(s, params, outputs).floats();
      const int64_t inputs = inputsOf(s, params), taps = s.taps();
      for (int64_t o = 0; o < outputs; o++)
        for (int64_t i = 0; i < inputs; i++)
          for (int64_t tap = 0; tap < taps; tap++) {
            const float* x = w.data() + (o * inputs + i) * taps + tap;
            if (x[0] == -128 && affines[t].scale[o] < 0) return true;
            if (saturates && i % 2 == 0 && i + 1 < inputs && std::abs(x[0] + x[taps]) > 128) return true;
          }
    }
  return false;
}

// Words of weights of a tap and an output channel; across groups one of what a lane takes.
int64_t tapWordsOf(const Branch& branch, const PackedBranch& packed, const Source& source, const Params& params) {
  const int64_t inputs = inputsOf(source, params);
  return packed.acrossGroups ? inputs / packed.taken : filled(inputs, branch) / perPackedWord(branch);
}

const TileSet& tileSetOf(const Branch& branch, const Params& params, const std::vector<Affine>& affines) {
  const TileSets& sets = *OCTCONV_PICK(tileSets);
  const bool f32 = branch.winograd || branch.compute == Compute::f32;
  if (branch.compute != Compute::i8) return f32 ? sets.f32 : sets.bf16;
  if (branch.winograd) return sets.i16;
  return needsShorts(branch, params, affines, sets.i8.saturates) ? sets.i8Wide : sets.i8;
}

// Where the panels' numbers go: panel by panel, in the order of their use.
void layOutDirect(PackedBranch& packed, Layout& layout) {
  const bool integers = packed.compute == Compute::i8;
  for (Panel& panel : packed.panels) {
    const int64_t width = panel.vectors * packed.set->lanes;
    const int64_t bytes = packed.acrossGroups ? 4 : packedBytes(packed.set->words);
    panel.bias = layout.add(width * 4);
    panel.scale = integers ? layout.add(width * 4) : 0;
    panel.low = layout.add(packed.lowWords * width * bytes);
    panel.weights = layout.add(packed.mainWords * width * bytes);
  }
}

// [position][panel], as Winograd's products read them.
void layOutWinograd(PackedBranch& packed, const Branch& branch, Layout& layout) {
  for (const Panel& panel : packed.panels) packed.widths += panel.vectors * packed.set->lanes;
  const int64_t all = packed.widths * 4, positions = positionsOf(branch);
  size_t bias = layout.add(all), scale = packed.compute == Compute::i8 ? layout.add(all) : 0;
  size_t main = layout.add(packed.mainWords * all), low = layout.add(packed.lowWords * all);
  for (Panel& panel : packed.panels) {
    const int64_t bytes = panel.vectors * packed.set->lanes * 4;
    panel.bias = bias, panel.scale = scale, panel.weights = main, panel.low = low;
    bias += bytes, scale += bytes;
    main += packed.mainWords / positions * bytes;
    low += packed.lowWords / positions * bytes;
  }
}

PackedBranch::ScaleShift layOutAffine(const Affine& affine, Layout& layout) {
  const size_t bytes = affine.scale.size() * 4;
  if (bytes == 0) return {};
  return {static_cast<int64_t>(affine.scale.size()), layout.add(bytes), layout.add(bytes)};
}

void putAffine(const Affine& affine, const PackedBranch::ScaleShift& at, char* memory) {
  std::copy(affine.scale.begin(), affine.scale.end(), reinterpret_cast<float*>(memory + at.scale));
  std::copy(affine.shift.begin(), affine.shift.end(), reinterpret_cast<float*>(memory + at.shift));
}

// Whether there are lanes beyond the last channel, or elements beyond the last input, that no weight fills.
bool hasGaps(const Branch& branch, const PackedBranch& per, const Params& params) {
  bool gaps = false;
  for (const Panel& panel : per.panels) gaps = gaps || panel.channels < panel.vectors * per.set->lanes;
  branch.eachSource([&](const Source& s) { gaps = gaps || inputsOf(s, params) % perPackedWord(branch) != 0; });
  return gaps;
}

// The weights of a panel of one source: [channel][input][tap], with batch normalisation folded in.
std::vector<float> foldedWeights(const Source& source, const Panel& panel, const Params& params, const Affine& affine,
                                 int64_t outputs, bool integers) {
  const int64_t row = inputsOf(source, params) * source.taps();
  std::vector<float> w = weightOf(source, params, outputs).floats(panel.begin * row, panel.channels * row);
  const std::vector<float> scales = weightScalesOf(source, params, outputs);
  for (int64_t c = 0; c < panel.channels; c++) {
    const double scale = affine.scale[panel.begin + c] * scales[panel.begin + c];
    // Integers keep their size; only the sign is folded in.
    const double factor = !integers ? scale : scale < 0 ? -1 : scale > 0 ? 1 : 0;
    for (int64_t i = 0; i < row; i++) w[c * row + i] *= static_cast<float>(factor);
  }
  return w;
}

// bias[c] + unit[c] * sum is the value of a sum of products; unit[c] of integers: f32 value of one u8 x i8 product.
struct Units {
  std::vector<double> bias, unit;
};

// Takes in one source of integers: its scale must be the others', and its zero point goes into the bias.
void addIntegers(Units& units, const Source& source, const Panel& panel, const Params& params, const Affine& affine,
                 const std::vector<float>& w, int64_t outputs) {
  const std::vector<float> scales = weightScalesOf(source, params, outputs);
  const int64_t row = static_cast<int64_t>(w.size()) / panel.channels;
  for (int64_t c = 0; c < panel.channels; c++) {
    double& unit = units.unit[c];
    const double mine = std::abs(affine.scale[panel.begin + c] * scales[panel.begin + c] * source.scale);
    if (unit == 0) unit = mine;
    if (std::abs(mine - unit) > 1e-4 * std::abs(unit) && mine != 0)
      fail("octConv: ", source.weight, " has i8 of another scale than the others of output channel ", panel.begin + c,
           ", ", mine, " instead of ", unit);
    double sum = 0;
    for (int64_t i = 0; i < row; i++) sum += w[c * row + i];
    units.bias[c] -= unit * source.zero * sum;
  }
}

// Writes one source's weights at `at`, which goes on to the next source's.
void putSource(const Branch& branch, const PackedBranch& packed, const Panel& panel, const Source& source,
               const Params& params, std::vector<float> w, char* memory, size_t& at) {
  const bool across = packed.acrossGroups > 0, elements = across && packed.taken == 1;  // elements: as f32
  const Words format = !elements ? packed.set->words : branch.compute == Compute::bf16 ? Words::bf16AsF32 : Words::f32;
  const int64_t width = panel.vectors * packed.set->lanes, inputs = inputsOf(source, params);
  const int64_t wordBytes = width * (across ? 4 : packedBytes(packed.set->words));
  const int64_t taps = packedTaps(branch, source), each = across ? packed.taken : perPackedWord(branch),
                tapWords = tapWordsOf(branch, packed, source, params);
  if (branch.winograd && branch.compute == Compute::bf16)
    for (float& x : w) x = floatOf(bfloat16Of(x));
  if (branch.winograd) w = branch.overTime ? overTimeWeights(w, branch, taps) : winogradWeights(w, branch);
  // A position of Winograd's has the taps and channels of all sources together, panel by panel.
  const int64_t positions = branch.winograd ? positionsOf(branch) : 1,
                all = source.upsample ? packed.lowWords : packed.mainWords,
                positionBytes = all / positions * packed.widths * 4, row = positions * taps;
  for (int64_t i = 0; i < inputs; i++)
    for (int64_t k = 0; k < row; k++)
      putWeights(format, memory + at + k / taps * positionBytes + (k % taps * tapWords + i / each) * wordBytes, width,
                 panel.channels, i % each, w.data() + i * row + k, inputs * row);
  at += taps * tapWords * wordBytes;
}

// One panel: all terms and sources, one after the other.
void packPanel(const Branch& branch, const PackedBranch& packed, const Panel& panel, const Params& params,
               const std::vector<Affine>& affines, char* memory) {
  const int64_t outputs = outputChannels(branch, params);
  const bool integers = branch.compute == Compute::i8;
  Units units{std::vector<double>(panel.channels, 0), std::vector<double>(panel.channels, integers ? 0 : 1)};
  size_t main = panel.weights, low = panel.low;
  for (size_t t = 0; t < branch.terms.size(); t++) {
    for (int64_t c = 0; c < panel.channels; c++) units.bias[c] += affines[t].shift[panel.begin + c];
    for (const Source& source : branch.terms[t].sources) {
      std::vector<float> w = foldedWeights(source, panel, params, affines[t], outputs, integers);
      if (integers) addIntegers(units, source, panel, params, affines[t], w, outputs);
      putSource(branch, packed, panel, source, params, std::move(w), memory, source.upsample ? low : main);
    }
  }
  for (int64_t c = 0; c < panel.channels; c++) {
    reinterpret_cast<float*>(memory + panel.bias)[c] = static_cast<float>(units.bias[c]);
    if (integers) reinterpret_cast<float*>(memory + panel.scale)[c] = static_cast<float>(units.unit[c]);
  }
}

}  // namespace

std::shared_ptr<const Packed> packBranch(const Attr& attrs, const Params& params, Crew& crew) {
  const Branch branch = oneBranchOf(attrs);
  if (branch.compute == Compute::f16) fail("octConv: no kernel for f16 on cpu");
  const int64_t channels = outputChannels(branch, params), groups = branch.groups();
  branch.eachSource([&](const Source& s) { weightOf(s, params, channels); });
  if (branch.winograd) branch.overTime ? checkOverTime(branch) : checkWinograd(branch);
  std::vector<Affine> affines, prologues, stores;
  for (const Term& term : branch.terms) affines.push_back(affineOf(term, params, channels));
  branch.eachSource([&](const Source& s) { prologues.push_back(affineOf(s.prologue, params)); });
  for (const Store& store : branch.stores) stores.push_back(affineOf(store.activation, params));

  auto packed = std::make_shared<PackedBranch>();
  packed->set = &tileSetOf(branch, params, affines);
  packed->compute = branch.compute;
  packed->winograd = branch.winograd, packed->overTime = branch.overTime;
  packed->channels = channels, packed->groups = groups;
  packed->depthwise = groups > 1 && groups == channels;
  branch.eachSource([&](const Source& s) {
    packed->readers.push_back({inputsOf(s, params), s.taps(), s.upsample});
    packed->depthwise = packed->depthwise && inputsOf(s, params) == 1 && !s.upsample;
  });
  const int64_t taken = packed->depthwise ? 1 : takenOf(branch, params, *packed->set);
  packed->acrossGroups =
      packed->depthwise ? packed->set->lanes : acrossGroupsOf(branch, params, *packed->set, channels, taken);
  if (packed->acrossGroups) packed->taken = taken;
  packed->panels = panelsOf(*packed);
  branch.eachSource([&](const Source& s) {
    (s.upsample ? packed->lowWords : packed->mainWords) +=
        (branch.winograd ? positionsOf(branch) : 1) * packedTaps(branch, s) * tapWordsOf(branch, *packed, s, params);
  });
  Layout layout;
  branch.winograd ? layOutWinograd(*packed, branch, layout) : layOutDirect(*packed, layout);
  for (const Affine& affine : prologues) packed->prologues.push_back(layOutAffine(affine, layout));
  for (const Affine& affine : stores) packed->stores.push_back(layOutAffine(affine, layout));

  packed->memory = Memory(layout.size());
  char* const memory = packed->memory.data();
  if (hasGaps(branch, *packed, params)) std::fill(memory, memory + layout.size(), 0);
  for (size_t i = 0; i < prologues.size(); i++) putAffine(prologues[i], packed->prologues[i], memory);
  for (size_t i = 0; i < stores.size(); i++) putAffine(stores[i], packed->stores[i], memory);
  crew.parallel(static_cast<int64_t>(packed->panels.size()), [&](int64_t panel, int) {
    packPanel(branch, *packed, packed->panels[panel], params, affines, memory);
  });
  return packed;
}

}  // namespace octconv
