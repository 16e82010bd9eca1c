// Weights of octConv as the tiles of the CPU read them: batch normalisation folded in, in panels of output channels,
// [tap][word of input channels][output channel].
#include "octconv_cpu.h"

namespace octconv {
namespace {

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
    (s.upsample ? lowWords : mainWords) +=
        (branch.winograd ? positionsOf(branch) : s.taps()) * wordsOf(inputsOf(s, params), branch.compute);
  });
  PackedWeights::PerBranch per{branch.compute, branch.winograd, depthwise, panelsOf(set, channels, groups, depthwise),
                               mainWords,      lowWords};
  int64_t widths = 0;
  for (Panel& panel : per.panels) {
    const int64_t width = panel.vectors * set.lanes, bytes = depthwise ? 4 : packedBytes(set.words);
    widths += width;
    panel.bias = layout.add(width * 4);
    panel.scale = branch.compute == Compute::i8 ? layout.add(width * 4) : 0;
    if (branch.winograd) continue;
    panel.low = layout.add(lowWords * width * bytes);  // in the order of their use
    panel.weights = layout.add(mainWords * width * bytes);
  }
  if (branch.winograd) {  // [position][panel]: as they are read
    size_t main = layout.add(mainWords * widths * 4), low = layout.add(lowWords * widths * 4);
    for (Panel& panel : per.panels) {
      panel.weights = main, panel.low = low;
      main += mainWords / positionsOf(branch) * panel.vectors * set.lanes * 4;
      low += lowWords / positionsOf(branch) * panel.vectors * set.lanes * 4;
    }
    per.widths = widths;
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
      const int64_t taps = branch.winograd ? positionsOf(branch) : source.taps();
      if (branch.winograd) w.elements = winogradWeights(w.elements, branch.winograd);
      for (size_t p = 0; p < per.panels.size(); p++) {
        const Panel& panel = per.panels[p];
        const int64_t width = panel.vectors * set.lanes, bytes = width * (per.depthwise ? 4 : packedBytes(set.words));
        size_t& at = source.upsample ? nextLow[p] : next[p];
        // A tap of Winograd's, a position, has the channels of all sources together, panel by panel.
        const int64_t all = source.upsample ? per.lowWords : per.mainWords,
                      tapBytes = branch.winograd ? all / taps * per.widths * 4 : words * bytes;
        for (int64_t c = 0; c < panel.channels; c++) {
          const float* from = w.elements.data() + (panel.begin + c) * inputs * taps;
          for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t i = 0; i < inputs; i++) {
              char* word = memory + at + tap * tapBytes + i / perWord(branch.compute) * bytes;
              putWeight(per.depthwise ? depthwiseWords(branch.compute) : set.words, word, width, c,
                        i % perWord(branch.compute), from[i * taps + tap]);
            }
        }
        at += (branch.winograd ? 1 : taps) * words * bytes;
      }
    }
  }
  for (const Panel& panel : per.panels)
    for (int64_t c = 0; c < panel.channels; c++) {
      reinterpret_cast<float*>(memory + panel.bias)[c] = static_cast<float>(bias[panel.begin + c]);
      if (integers) reinterpret_cast<float*>(memory + panel.scale)[c] = static_cast<float>(unit[panel.begin + c]);
    }
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

}  // namespace octconv
