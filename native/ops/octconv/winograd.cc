// 3x3 convolutions by Winograd's algorithm (cpu/winograd.h), inside of the same fused step. Products are of f32, or of
// integers of i16; bf16 and u8 are widened by the transform of the inputs.
//
// A task transforms the inputs of a block of tiles (all sources of the sum, channel after channel), multiplies each of
// the (O + 2)^2 positions with its weights by the register tiles, a tile of outputs being a pixel there, and transforms
// the sums to outputs, which start from the upsampled low product T and get bias, residual and clamp on their way.
// Position by position, so that inputs and weights of one are in the L1 cache; a block is so large that its inputs and
// sums stay in L2. Tiles lie on a fixed grid: no cut into blocks changes a bit.
#include "../../cpu/winograd.h"

#include "cpu.h"

namespace octconv {
namespace {

int64_t inputsOf(const Sum& sum) {
  int64_t channels = 0;
  for (const TileSource& source : sum.sources) channels += source.shape.c;
  return channels;
}

int64_t widthOf(const BranchPlan& b, int64_t panels) {
  int64_t vectors = 0;
  for (int64_t i = 0; i < panels; i++) vectors += b.packed->panels[i].vectors;
  return vectors * b.packed->set->lanes;
}

struct Pieces {  // offsets in a thread's scratch
  size_t indirection, inputs, sums, low, size;
};

Pieces piecesOf(const BranchPlan& b) {
  const int64_t o = b.spec.winograd, positions = positionsOf(b.spec),
                width = widthOf(b, static_cast<int64_t>(b.packed->panels.size()));
  int64_t pointers = 0, inputs = 0, sums = 0;
  for (const auto& [sum, rows] : {std::pair{&b.main, b.rows}, std::pair{&b.low, half(b.rows)}}) {
    const int64_t tiles = product(b.planes, (rows + o - 1) / o, sum->points.w);
    pointers = std::max(pointers, product(tiles, sum->taps));
    inputs = std::max(inputs, product(tiles, positions, inputsOf(*sum)));
    if (sum->taps) sums = std::max(sums, product(tiles, positions, width));
  }
  Layout layout;
  Pieces p{};
  p.indirection = layout.add(product(pointers, sizeof(void*)));
  p.inputs = layout.add(product(inputs, packedInputBytes(b.spec)));
  p.sums = layout.add(product(sums, 4));
  p.low = layout.add(b.low.taps ? product(b.planes, half(b.rows), b.low.grid.w, width, 4) : 0);
  p.size = layout.size();
  return p;
}

// One sum over a block: transforms, products, transforms. `place` says where the outputs of a tile go.
struct Transform {
  const BranchPlan& b;
  const Block& block;
  const Run& run;
  const char* memory;
  const char** indirection;
  char *inputs, *sums;

  template <class Place>
  void operator()(const Sum& sum, bool low, WinogradOutput outputs, Place&& place) const {
    const int64_t o = b.spec.winograd, positions = positionsOf(b.spec), each = packedInputBytes(b.spec),
                  bytes = inputsOf(sum) * each;  // of a tile's inputs at one position
    const Window at = pointsOf(b, sum, block);
    const int64_t first = (at.plane * sum.points.h + at.row) * sum.points.w, count = at.rows() * sum.points.w;

    pointTo(sum, sizeOf(b.spec.compute), at, indirection,
            [&](const TileSource& source) { return heldOf(source, sum.points, at, run, memory); });
    const auto toInput = o == 4 ? OCTCONV_PICK(winogradInput4) : OCTCONV_PICK(winogradInput2);
    const char** pixels = indirection;
    int64_t begin = 0;
    for (const TileSource& source : sum.sources) {
      for (int64_t i = 0; i < count; i++)
        toInput({operandType(b.spec.compute), pixels + i, count, source.shape.c, inputs + i * bytes + begin,
                 count * bytes});
      pixels += positions * count;
      begin += source.shape.c * each;
    }

    const int64_t width = widthOf(b, block.panelEnd) - widthOf(b, block.panelBegin);
    const TapRun taps{1, bytes, 0};
    Tile tile{};
    tile.indirection = indirection;
    tile.tapRuns = &taps;
    tile.tapRunCount = 1;
    tile.raw = true;
    tile.pitch = width;
    for (int64_t p = 0; p < positions; p++) {
      for (int64_t i = 0; i < count; i++) indirection[i] = inputs + (p * count + i) * bytes;
      char* to = sums + p * count * width * 4;
      for (int64_t i = block.panelBegin; i < block.panelEnd; i++) {
        const Panel& panel = b.packed->panels[i];
        tile.weights = b.packed->memory.data() + (low ? panel.low : panel.weights) + p * bytes * b.packed->widths;
        tile.out.data = to;
        runTiles(*b.packed->set, tile, panel, tilesOf(*b.packed->set, panel), count);
        to += panel.vectors * b.packed->set->lanes * 4;
      }
    }

    const auto toOutput = o == 4 ? OCTCONV_PICK(winogradOutput4) : OCTCONV_PICK(winogradOutput2);
    outputs.integers = b.spec.compute == Compute::i8;
    outputs.positionStride = count * width;
    for (int64_t i = 0; i < count; i++) {
      const int64_t plane = (first + i) / (sum.points.w * sum.points.h),
                    y = (first + i) / sum.points.w % sum.points.h * o, x = (first + i) % sum.points.w * o;
      outputs.from = sums + i * width * 4;
      outputs.rows = static_cast<int>(std::min(o, sum.grid.h - y));
      outputs.columns = static_cast<int>(std::min(o, sum.grid.w - x));
      place(outputs, plane * sum.grid.h + y, x);
      toOutput(outputs);
    }
  }
};

}  // namespace

void checkWinograd(const Branch& branch) {
  if (branch.winograd != 2 && branch.winograd != 4) fail("octConv: winograd ", branch.winograd, ", wanted 2 or 4");
  branch.eachSource([&](const Source& s) {
    const Size3 one(1, 1, 1);
    if (s.kernel != Size3(1, 3, 3) || s.padding != Size3(0, 1, 1) || s.stride != one || s.dilation != one ||
        s.groups != 1)
      fail("octConv: winograd wants 3x3 convolutions of stride 1 and padding 1, without dilation or groups");
  });
}

Source overTiles(const Source& source, int64_t winograd) {
  Source tiles = source;
  tiles.kernel = Size3(1, winograd + 2, winograd + 2);
  tiles.stride = Size3(1, winograd, winograd);
  return tiles;
}

size_t winogradScratch(const BranchPlan& b) { return piecesOf(b).size; }

void runWinograd(const Node& node, const BranchPlan& b, const Block& block, const Run& run, char* memory,
                 const Destination& out) {
  const Pieces at = piecesOf(b);
  const Shape &y = b.main.grid, &l = b.low.grid;
  auto** indirection = reinterpret_cast<const char**>(memory + at.indirection);
  const Transform transform{b, block, run, memory, indirection, memory + at.inputs, memory + at.sums};
  char* low = memory + at.low;
  const int64_t width = widthOf(b, block.panelEnd) - widthOf(b, block.panelBegin);
  const int64_t firstRow = block.plane * y.h + block.row, lowFirst = block.plane * l.h + block.row / 2;
  if (b.low.taps) {
    WinogradOutput sums{};
    sums.raw = true;
    sums.row = l.w * width;
    sums.pitch = sums.channels = width;
    transform(b.low, true, sums, [&](WinogradOutput& tile, int64_t row, int64_t x) {
      tile.out.data = low + ((row - lowFirst) * l.w + x) * width * 4;
    });
  }
  const Panel panels = channelsOf(b, block);
  WinogradOutput outputs{};
  static_cast<Epilogue&>(outputs) = epilogueOf(node, b, run, panels, firstRow * y.w, out.first);
  outputs.startRow = l.w * width;
  outputs.startPitch = width;
  outputs.row = y.w * outputs.pitch;
  outputs.residualRow = y.w * outputs.residualPitch;
  const auto elementBytes = static_cast<int64_t>(bytesOf(outputs.out.dtype));
  char *const first = static_cast<char*>(outputs.out.data), *const residual = static_cast<char*>(outputs.residual.data);
  transform(b.main, false, outputs, [&](WinogradOutput& tile, int64_t row, int64_t x) {
    const int64_t pixel = (row - firstRow) * y.w + x, lowRow = row / y.h * l.h + row % y.h / 2;
    tile.out.data = first + pixel * outputs.pitch * elementBytes;
    if (residual) tile.residual.data = residual + pixel * outputs.residualPitch * elementBytes;
    if (b.low.taps) tile.start = low + ((lowRow - lowFirst) * l.w + x / 2) * width * 4;
  });
}

template <int side>
static void transformWeights(const double (&g)[side][3], const float* w, float* to) {
  double rows[side][3];  // G w
  for (int y = 0; y < side; y++)
    for (int x = 0; x < 3; x++) rows[y][x] = g[y][0] * w[x] + g[y][1] * w[3 + x] + g[y][2] * w[6 + x];
  for (int y = 0; y < side; y++)
    for (int x = 0; x < side; x++)
      to[y * side + x] = static_cast<float>(rows[y][0] * g[x][0] + rows[y][1] * g[x][1] + rows[y][2] * g[x][2]);
}

std::vector<float> winogradWeights(const std::vector<float>& kernels, const Branch& branch) {
  static constexpr double g2[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
  static constexpr double g4[6][3] = {{1. / 4, 0, 0},
                                      {-1. / 6, -1. / 6, -1. / 6},
                                      {-1. / 6, 1. / 6, -1. / 6},
                                      {1. / 24, 1. / 12, 1. / 6},
                                      {1. / 24, -1. / 12, 1. / 6},
                                      {0, 0, 1}};
  // Whole numbers: times 2; times 24, but the last times 6, so that they are i16.
  static constexpr double g2Integers[4][3] = {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}};
  static constexpr double g4Integers[6][3] = {{6, 0, 0}, {-4, -4, -4}, {-4, 4, -4}, {1, 2, 4}, {1, -2, 4}, {0, 0, 6}};
  const bool integers = branch.compute == Compute::i8;
  const auto positions = static_cast<size_t>(positionsOf(branch));
  std::vector<float> result(kernels.size() / 9 * positions);
  for (size_t k = 0; k < kernels.size() / 9; k++) {
    const float* kernel = kernels.data() + k * 9;
    float* to = result.data() + k * positions;
    if (branch.winograd == 2) transformWeights(integers ? g2Integers : g2, kernel, to);
    if (branch.winograd == 4) transformWeights(integers ? g4Integers : g4, kernel, to);
  }
  return result;
}

}  // namespace octconv
