// Convolutions of 3 or 5 taps over time by Winograd's algorithm along T (cpu/winograd.h), whatever they are over height
// and width: kt x 1 x 1 of I3D's blocks, the 5 x 7 x 7 of its stem.
//
// A task computes the same rows of 4 frames (of 2 where integers have 5 taps). It transforms the frames that it reads
// of each input, row after row, and a pixel outside. What is left at each of the positions is a convolution without
// time, direct.cc's: T, then the tiles, which start from it. Its sums become those of the frames in the end, with bias,
// residual and clamp.
#include "../../cpu/winograd.h"
#include "cpu.h"

namespace octconv {
namespace {

int64_t widthOf(const BranchPlan& b, int64_t begin, int64_t end) {
  int64_t vectors = 0;
  for (int64_t i = begin; i < end; i++) vectors += b.packed->panels[i].vectors;
  return vectors * b.packed->set->lanes;
}

// The most rows that a block's tiles read of a source.
int64_t rowsOf(const BranchPlan& b, const Sum& sum, const TileSource& source) {
  const int64_t rows = &sum == &b.low ? half(b.rows) : b.rows;
  return std::min(source.shape.h,
                  (rows - 1) * source.conv.stride.h + (source.conv.kernel.h - 1) * source.conv.dilation.h + 1);
}

// Frames in front of the first output's that a tile of time reads.
int64_t paddingOf(const BranchPlan& b) { return (positionsOf(b.spec) - b.spec.winograd) / 2; }

struct Pieces {  // offsets in a thread's scratch
  PointerPlaces pointers;
  std::vector<size_t> inputs;  // of each source: [position][row][column][channel], a pixel outside behind each position
  size_t sums, size;           // [position][pixel][channel]
};

Pieces piecesOf(const BranchPlan& b) {
  const int64_t positions = positionsOf(b.spec);
  Layout layout;
  Pieces p{};
  p.pointers = layOutPointers(b, layout);
  for (const Sum* sum : {&b.main, &b.low})
    for (const TileSource& source : sum->sources)
      p.inputs.push_back(layout.add(
          product(positions, rowsOf(b, *sum, source) * source.shape.w + 1, source.shape.c, packedInputBytes(b.spec))));
  p.sums = layout.add(
      product(positions, b.rows, b.main.grid.w, widthOf(b, 0, static_cast<int64_t>(b.packed->panels.size())), 4));
  p.size = layout.size();
  return p;
}

// What is read of a source at each position: `held` is that of position 0.
struct Transformed {
  Held held;
  int64_t stride;  // bytes from position to position
};

Transformed transformInput(const BranchPlan& b, const Node& node, const TileSource& source, const Window& rows,
                           const Block& block, const Run& run, const char* memory, char* to) {
  const Source& s = source.conv;
  const TensorType& x = node.inputs[s.input];
  const DType dtype = operandType(b.spec.compute);
  const Range time = timeOf(b, x.shape, block);
  const auto bytes = static_cast<int64_t>(bytesOf(dtype));
  const int64_t pixels = rows.rows() * source.shape.w, channels = source.shape.c, each = packedInputBytes(b.spec);
  // Where the rows of a frame of the clip lie.
  const auto frame = [&](int64_t plane) {
    if (source.prepared) return memory + source.prepared->copy + (plane - time.begin) * pixels * channels * bytes;
    return run.in<char>(s.input) + (plane * x.shape.h + rows.row) * x.shape.w * x.pitch() * bytes;
  };
  alignas(64) char outside[128];
  std::fill_n(outside, sizeof(outside), static_cast<char>(dtype == DType::u8 ? s.zero : 0));
  const int64_t stride = (pixels + 1) * channels * each;
  OverTimeInput input{dtype, static_cast<int>(positionsOf(b.spec)), {}, {}, 0, to, stride};
  const int64_t first = block.plane % x.shape.t - paddingOf(b), clip = block.plane / x.shape.t * x.shape.t;
  for (int64_t p = 0; p < input.positions; p++) {
    input.steps[p] = first + p >= 0 && first + p < x.shape.t;
    input.planes[p] = input.steps[p] ? frame(clip + first + p) : outside;
  }
  const auto transform = OCTCONV_PICK(overTimeInput);
  // Pixels that lie one behind the other are taken at once.
  const int64_t pieces = source.prepared || x.pitch() == channels ? 1 : pixels;
  input.count = pixels / pieces * channels;
  for (int64_t i = 0; i < pieces; i++) {
    transform(input);
    for (int64_t p = 0; p < input.positions; p++) input.planes[p] += input.steps[p] * x.pitch() * bytes;
    input.to += input.count * each;
  }
  std::fill_n(input.planes, input.positions, outside);
  std::fill_n(input.steps, input.positions, 0);
  input.count = channels;
  transform(input);
  return {{to, rows, input.to}, stride};
}

}  // namespace

void checkOverTime(const Branch& branch) {
  const int64_t taps = branch.terms[0].sources[0].kernel.t,
                outputs = taps == 5 && branch.compute == Compute::i8 ? 2 : 4;
  if (branch.winograd != outputs || (taps != 3 && taps != 5))
    fail("octConv: winograd ", branch.winograd, " over ", taps, " taps of time, wanted 4 over 3 or 5, of i8 2 over 5");
  branch.eachSource([&](const Source& s) {
    if (s.kernel.t != taps || s.stride.t != 1 || s.dilation.t != 1 || s.padding.t != taps / 2 || s.groups != 1)
      fail("octConv: winograd over time wants sources of as many taps, of stride 1 and padding to the same time, ",
           "without groups");
  });
}

Source atPosition(const Source& source) {
  Source position = source;
  position.kernel.t = 1, position.padding.t = 0;
  return position;
}

Range timeOf(const BranchPlan& b, const Shape& x, const Window& block) {
  const int64_t clip = block.plane / x.t * x.t, first = block.plane % x.t - paddingOf(b);
  const auto inside = [&](int64_t t) { return clip + std::clamp<int64_t>(t, 0, x.t); };
  return {inside(first), inside(first + positionsOf(b.spec))};
}

size_t overTimeScratch(const BranchPlan& b) { return piecesOf(b).size; }

void runOverTime(const Node& node, const BranchPlan& b, const Block& block, const Run& run, char* memory,
                 const Destination& out) {
  const Pieces pieces = piecesOf(b);
  const Pointers pointers = pointersAt(b, block, pieces.pointers, memory);
  const int64_t positions = positionsOf(b.spec), width = widthOf(b, block.panelBegin, block.panelEnd);
  char* const sums = memory + pieces.sums;

  std::vector<Transformed> inputs;  // main sources, then low ones
  for (const Sum* sum : {&b.main, &b.low})
    for (const TileSource& source : sum->sources) {
      const Window rows = windowOf(source, sum->points, pointsOf(b, *sum, block));
      char* const to = memory + pieces.inputs[inputs.size()];
      inputs.push_back(transformInput(b, node, source, rows, block, run, memory, to));
    }

  const char* packed = b.packed->memory.data();
  const int64_t mainBytes = b.packed->mainWords / positions * b.packed->widths * 4,
                lowBytes = b.packed->lowWords / positions * b.packed->widths * 4;
  for (int64_t p = 0; p < positions; p++) {
    const Transformed* next = inputs.data();
    for (const auto& [sum, to] : {std::pair{&b.main, pointers.main}, std::pair{&b.low, pointers.low}})
      pointTo(*sum, packedInputBytes(b.spec), pointsOf(b, *sum, block), to, [&](const TileSource&) {
        const auto& [held, stride] = *next++;
        return Held{held.memory + p * stride, held.window, held.zeros + p * stride};
      });
    Tile tile{};
    tile.raw = true;
    tile.pitch = width;
    char* to = sums + p * pointers.count * width * 4;
    for (int64_t i = block.panelBegin; i < block.panelEnd; i++) {
      const Panel& panel = b.packed->panels[i];
      runLow(b, panel, pointers, packed + panel.low + p * lowBytes);
      tile.out.data = to;
      runMain(b, panel, pointers, packed + panel.weights + p * mainBytes, tile, 0, pointers.count);
      to += panel.vectors * b.packed->set->lanes * 4;
    }
  }

  const Shape& y = b.main.grid;
  WinogradOutput outputs{};
  static_cast<Epilogue&>(outputs) =
      epilogueOf(node, b, run, channelsOf(b, block), (block.plane * y.h + block.row) * y.w, out.first);
  outputs.integers = b.spec.compute == Compute::i8;
  outputs.from = sums;
  outputs.positionStride = pointers.count * width;
  outputs.rows = static_cast<int>(block.planes());
  outputs.row = out.planeStep / static_cast<int64_t>(bytesOf(outputs.out.dtype));
  outputs.residualRow = y.h * y.w * outputs.residualPitch;
  OCTCONV_PICK(overTimeOutput)
  (outputs, static_cast<int>(positions), static_cast<int>(b.spec.winograd), pointers.count, width);
}

std::vector<float> overTimeWeights(const std::vector<float>& kernels, const Branch& branch, int64_t taps) {
  // A position is a point, whose powers the taps over time are multiplied by, and a factor; the last is infinity.
  static constexpr double points[] = {0, 1, -1, 2, -2, .5, -.5};
  static constexpr double six[] = {1. / 4, -1. / 6, -1. / 6, 1. / 24, 1. / 24, 1},
                          integers[] = {6, -4, -4, 1, 1, 6},  // 24 times as much, the last 6 times: they are i16
      eight[] = {1, -2. / 9, -2. / 9, 1. / 90, 1. / 90, 32. / 45, 32. / 45, 1};
  const auto positions = static_cast<size_t>(positionsOf(branch)), all = static_cast<size_t>(taps),
             times = positions + 1 - static_cast<size_t>(branch.winograd), count = kernels.size() / times / all;
  const double* factors = positions == 8 ? eight : branch.compute == Compute::i8 ? integers : six;
  std::vector<float> result(count * positions * all);
  for (size_t k = 0; k < count; k++)
    for (size_t p = 0; p < positions; p++)
      for (size_t tap = 0; tap < all; tap++) {
        const float* const w = kernels.data() + k * times * all + tap;
        double sum = w[(times - 1) * all];
        if (p + 1 < positions)
          for (size_t t = times - 1; t-- > 0;) sum = sum * points[p] + w[t * all];
        result[(k * positions + p) * all + tap] = static_cast<float>(factors[p] * sum);
      }
  return result;
}

}  // namespace octconv
