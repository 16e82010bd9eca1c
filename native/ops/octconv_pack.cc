// Weights of octConv as the tiles of the CPU read them: batch normalisation folded in, in panels of output channels,
// [tap][word of input channels][output channel].
#include "../core/pool.h"
#include "octconv_cpu.h"

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

// Whether two i8 of neighbouring input channels add up to more than 128, in any output channel.
bool hasLargePairs(const Branch& branch, const Params& params, int64_t outputs) {
  bool large = false;
  branch.eachSource([&](const Source& s) {
    const std::vector<float> w = weightOf(s, params, outputs).floats();
    const int64_t inputs = inputsOf(s, params), taps = s.taps();
    for (int64_t o = 0; o < outputs; o++)
      for (int64_t i = 0; i + 1 < inputs; i += 2)
        for (int64_t tap = 0; tap < taps; tap++) {
          const float* pair = w.data() + (o * inputs + i) * taps + tap;
          large = large || std::abs(pair[0] + pair[taps]) > 128;
        }
  });
  return large;
}

// Words of weights of a tap and an output channel.
int64_t tapWordsOf(const Branch& branch, const Source& source, const Params& params) {
  return wordsOf(inputsOf(source, params), branch.compute) * perWord(branch.compute) / perPackedWord(branch);
}

// Where the numbers of a branch's panels go; whether all is depthwise.
PackedWeights::PerBranch layOut(const Branch& branch, const Params& params, Layout& layout) {
  const int64_t channels = outputChannels(branch, params), groups = branch.groups();
  if (channels < 1 || groups < 1 || channels % groups)
    fail("octConv: ", groups, " groups do not divide ", channels, " output channels");
  branch.eachSource([&](const Source& s) { weightOf(s, params, channels); });
  const auto& sets = *OCTCONV_PICK(tileSets);
  const bool integers = branch.compute == Compute::i8;
  const TileSet& set = sets[branch.winograd ? (integers ? 4 : 0)
                            : integers && sets[2].saturates && hasLargePairs(branch, params, channels)
                                ? 3
                                : static_cast<int>(branch.compute)];
  bool depthwise = groups > 1 && groups == channels;
  branch.eachSource([&](const Source& s) { depthwise = depthwise && inputsOf(s, params) == 1 && !s.upsample; });
  int64_t mainWords = 0, lowWords = 0;
  branch.eachSource([&](const Source& s) {
    (s.upsample ? lowWords : mainWords) +=
        (branch.winograd ? positionsOf(branch) : s.taps()) * tapWordsOf(branch, s, params);
  });
  PackedWeights::PerBranch per{
      &set,      branch.compute, branch.winograd, depthwise, panelsOf(set, channels, groups, depthwise),
      mainWords, lowWords};
  int64_t widths = 0;
  for (Panel& panel : per.panels) {
    const int64_t width = panel.vectors * set.lanes, bytes = depthwise ? 4 : packedBytes(set.words);
    widths += width;
    if (branch.winograd) continue;
    panel.bias = layout.add(width * 4);
    panel.scale = integers ? layout.add(width * 4) : 0;
    panel.low = layout.add(lowWords * width * bytes);  // in the order of their use
    panel.weights = layout.add(mainWords * width * bytes);
  }
  if (branch.winograd) {  // [position][panel]: as they are read
    size_t bias = layout.add(widths * 4), scale = integers ? layout.add(widths * 4) : 0;
    size_t main = layout.add(mainWords * widths * 4), low = layout.add(lowWords * widths * 4);
    for (Panel& panel : per.panels) {
      panel.bias = bias, panel.scale = scale, panel.weights = main, panel.low = low;
      bias += panel.vectors * set.lanes * 4;
      scale += panel.vectors * set.lanes * 4;
      main += mainWords / positionsOf(branch) * panel.vectors * set.lanes * 4;
      low += lowWords / positionsOf(branch) * panel.vectors * set.lanes * 4;
    }
    per.widths = widths;
  }
  return per;
}

// Whether there are lanes beyond the last channel, or elements beyond the last input, that no weight fills.
bool hasGaps(const Branch& branch, const PackedWeights::PerBranch& per, const Params& params) {
  bool gaps = false;
  for (const Panel& panel : per.panels) gaps = gaps || panel.channels < panel.vectors * per.set->lanes;
  branch.eachSource([&](const Source& s) { gaps = gaps || inputsOf(s, params) % perWord(branch.compute) != 0; });
  return gaps;
}

// One panel: all terms and sources, one after the other.
void packPanel(const Branch& branch, const PackedWeights::PerBranch& per, const Panel& panel, const Params& params,
               const std::vector<Affine>& affines, char* memory) {
  const TileSet& set = *per.set;
  const int64_t outputs = outputChannels(branch, params), width = panel.vectors * set.lanes;
  const Words format = !per.depthwise                    ? set.words
                       : branch.compute == Compute::bf16 ? Words::bf16AsF32
                                                         : Words::f32;  // depthwise: one f32 per channel and tap
  const int64_t wordBytes = width * (per.depthwise ? 4 : packedBytes(set.words));
  const bool integers = branch.compute == Compute::i8;
  // bias[c] + unit[c] * sum: of integers, unit is what a product is worth.
  std::vector<double> bias(panel.channels, 0), unit(panel.channels, integers ? 0 : 1);
  size_t main = panel.weights, low = panel.low;
  for (size_t t = 0; t < branch.terms.size(); t++) {
    const Affine& affine = affines[t];
    for (int64_t c = 0; c < panel.channels; c++) bias[c] += affine.shift[panel.begin + c];
    for (const Source& source : branch.terms[t].sources) {
      const int64_t inputs = inputsOf(source, params), row = inputs * source.taps();
      const std::vector<float> scales = weightScalesOf(source, params, outputs);
      std::vector<float> w = weightOf(source, params, outputs).floats(panel.begin * row, panel.channels * row);
      for (int64_t c = 0; c < panel.channels; c++) {
        float* v = w.data() + c * row;
        const double scale = affine.scale[panel.begin + c] * scales[panel.begin + c];
        if (!integers) {
          for (int64_t i = 0; i < row; i++) v[i] *= static_cast<float>(scale);
          continue;
        }
        const double mine = std::abs(scale * source.scale), sign = scale < 0 ? -1 : scale > 0 ? 1 : 0;
        for (int64_t i = 0; i < row; i++) v[i] *= static_cast<float>(sign);
        if (unit[c] == 0) unit[c] = mine;
        if (std::abs(mine - unit[c]) > 1e-4 * std::abs(unit[c]) && mine != 0)
          fail("octConv: ", source.weight, " has i8 of another scale than the others of output channel ",
               panel.begin + c, ", ", mine, " instead of ", unit[c]);
        double sum = 0;
        for (int64_t i = 0; i < row; i++) sum += v[i];
        bias[c] -= unit[c] * source.zero * sum;
      }
      const int64_t taps = branch.winograd ? positionsOf(branch) : source.taps(), each = perPackedWord(branch),
                    tapWords = per.depthwise ? 1 : tapWordsOf(branch, source, params);
      if (branch.winograd && branch.compute == Compute::bf16)
        for (float& x : w) x = floatOf(bfloat16Of(x));
      if (branch.winograd) w = winogradWeights(w, branch);
      // A tap of Winograd's, a position, has the channels of all sources together, panel by panel.
      const int64_t all = source.upsample ? per.lowWords : per.mainWords,
                    tapBytes = branch.winograd ? all / taps * per.widths * 4 : tapWords * wordBytes;
      size_t& at = source.upsample ? low : main;
      for (int64_t i = 0; i < inputs; i++)
        for (int64_t tap = 0; tap < taps; tap++)
          putWeights(format, memory + at + tap * tapBytes + i / each * wordBytes, width, panel.channels, i % each,
                     w.data() + i * taps + tap, inputs * taps);
      at += (branch.winograd ? 1 : taps) * tapWords * wordBytes;
    }
  }
  for (int64_t c = 0; c < panel.channels; c++) {
    reinterpret_cast<float*>(memory + panel.bias)[c] = static_cast<float>(bias[c]);
    if (integers) reinterpret_cast<float*>(memory + panel.scale)[c] = static_cast<float>(unit[c]);
  }
}

}  // namespace

std::shared_ptr<const Packed> packFast(const std::vector<Branch>& branches, const Params& params) {
  auto packed = std::make_shared<PackedWeights>();
  Layout layout;
  for (const Branch& branch : branches) packed->branches.push_back(layOut(branch, params, layout));
  packed->memory = Memory(layout.size());
  bool gaps = false;
  for (size_t b = 0; b < branches.size(); b++) gaps = gaps || hasGaps(branches[b], packed->branches[b], params);
  if (gaps) std::fill(packed->memory.data(), packed->memory.data() + layout.size(), 0);
  for (size_t b = 0; b < branches.size(); b++) {
    const PackedWeights::PerBranch& per = packed->branches[b];
    std::vector<Affine> affines;
    for (const Term& term : branches[b].terms)
      affines.push_back(affineOf(term, params, outputChannels(branches[b], params)));
    pool::parallel(static_cast<int64_t>(per.panels.size()), [&](int64_t panel) {
      packPanel(branches[b], per, per.panels[panel], params, affines, packed->memory.data());
    });
  }
  return packed;
}

}  // namespace octconv
