// Direct convolution of a block: T of the low pixels under it, then the register tiles, panel by panel.
#include "cpu.h"

namespace octconv {
namespace {

struct Scratch {  // offsets in a thread's scratch
  size_t rows, lowRows, start, low, size;
};

Scratch scratchOf(const BranchPlan& b) {
  const Shape& y = b.main.grid;
  const int64_t pixels = product(b.planes, b.rows, y.w);
  const int64_t lowPixels = b.low.taps ? b.planes * half(b.rows) * half(y.w) : 0;
  Layout layout;
  Scratch s{};
  s.rows = layout.add(product(pixels, b.main.taps, sizeof(void*)));
  s.lowRows = layout.add(product(lowPixels, b.low.taps, sizeof(void*)));
  s.start = layout.add(pixels * sizeof(void*));
  s.low = layout.add(product(lowPixels, b.packed->set->shape.maxVectors, b.packed->set->lanes, 4));
  s.size = layout.size();
  return s;
}

}  // namespace

void pointTo(const FastPlan& plan, const Sum& sum, int64_t bytes, const Run& run, int64_t first, int64_t last,
             const char** rows) {
  const int64_t count = last - first;
  const Shape& grid = sum.points;
  for (const TileSource& source : sum.sources) {
    const Source& s = source.conv;
    const Shape& x = source.shape;
    const char *zeros = source.zeros.data(), *base = source.prepared < 0
                                                         ? run.in<char>(s.input)
                                                         : run.shared + plan.prepared[source.prepared].offsets.back();
    const int64_t pitch = source.pitch * bytes;
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
            // From `begin` to `end` inputs are inside.
            const int64_t first = column * s.stride.w + kx * s.dilation.w - padW;
            const auto reach = [&](int64_t xi) {
              return std::clamp<int64_t>((xi - first + s.stride.w - 1) / s.stride.w, 0, until);
            };
            const int64_t begin = inside && first < 0 ? reach(0) : inside ? 0 : until;
            const int64_t end = inside && first + until * s.stride.w > x.w ? std::max(begin, reach(x.w)) : until;
            std::fill(to, to + begin, zeros);
            const char* input = line + (first + begin * s.stride.w) * pitch;
            for (int64_t i = begin; i < end; i++, input += s.stride.w * pitch) to[i] = input;
            std::fill(to + end, to + until, zeros);
          }
        }
      }
      p += until;
    }
    rows += source.taps() * count;
  }
}

void runTiles(const TileSet& set, Tile tile, const Panel& panel, bool depthwise, int64_t count) {
  const int64_t most = depthwise ? 4 : set.shape.maxPixels[panel.vectors], parts = (count + most - 1) / most;
  const TileFunction* functions = depthwise ? set.depthwise : set.tiles[panel.vectors];
  tile.outBytes = tile.pitch * (tile.raw ? 4 : static_cast<int64_t>(bytesOf(tile.out.dtype)));
  tile.residualBytes = tile.residualPitch * static_cast<int64_t>(bytesOf(tile.residual.dtype));
  // While these weights are used again and again, those behind them, which are next, come from memory.
  const int64_t wordBytes = panel.vectors * set.lanes * packedBytes(set.words);
  int64_t words = 0;
  for (size_t s = 0; s < tile.tapRunCount; s++) words += tile.tapRuns[s].taps * tile.tapRuns[s].bytes / 4;
  tile.ahead = tile.weights + words * wordBytes;
  tile.aheadStep = wordBytes / parts;
  const int64_t pixels = count / parts, larger = count % parts;  // so many tiles have one pixel more
  if (larger) functions[pixels + 1](tile, larger);
  functions[pixels](tile, parts - larger);
}

size_t directScratch(const BranchPlan& b) { return scratchOf(b).size; }

void runDirect(const FastPlan& plan, const Node& node, const BranchPlan& b, const Block& block, const Run& run,
               char* memory, char* out) {
  const Shape& y = b.main.grid;
  const int64_t first = block.row * y.w, count = block.rowEnd * y.w - first;
  const Scratch at = scratchOf(b);
  const TileSet& set = *b.packed->set;
  const int64_t bytes = sizeOf(b.spec.compute);
  auto** rows = reinterpret_cast<const char**>(memory + at.rows);
  auto** lowRows = reinterpret_cast<const char**>(memory + at.lowRows);
  auto** start = reinterpret_cast<const char**>(memory + at.start);
  char* low = memory + at.low;
  const int64_t lowPitch = set.shape.maxVectors * set.lanes;
  int64_t lowCount = 0;
  pointTo(plan, b.main, bytes, run, first, first + count, rows);
  if (b.low.taps) {
    const Shape& l = b.low.grid;
    const int64_t lowFirst = rowAt(y, block.row, 1) * l.w;
    lowCount = (rowAt(y, block.rowEnd - 1, 1) + 1) * l.w - lowFirst;
    pointTo(plan, b.low, bytes, run, lowFirst, lowFirst + lowCount, lowRows);
    for (int64_t r = block.row; r < block.rowEnd; r++)
      for (int64_t x = 0; x < y.w; x++)
        start[(r - block.row) * y.w + x] = low + (rowAt(y, r, 1) * l.w + x / 2 - lowFirst) * lowPitch * 4;
  }

  for (int64_t i = block.panelBegin; i < block.panelEnd; i++) {
    const Panel& panel = b.packed->panels[i];
    Tile tile{};
    if (b.low.taps) {
      tile.rows = lowRows;
      tile.rowStride = lowCount;
      tile.tapRuns = b.low.tapRuns[panel.group].data();
      tile.tapRunCount = b.low.tapRuns[panel.group].size();
      tile.weights = b.packed->memory.data() + panel.low;
      tile.raw = true;
      tile.out.data = low;
      tile.pitch = lowPitch;
      runTiles(set, tile, panel, false, lowCount);
    }
    tile.rows = rows;
    tile.rowStride = count;
    tile.tapRuns = b.main.tapRuns[panel.group].data();
    tile.tapRunCount = b.main.tapRuns[panel.group].size();
    tile.weights = b.packed->memory.data() + panel.weights;
    tile.start = b.low.taps ? start : nullptr;
    tile.raw = false;
    static_cast<Epilogue&>(tile) = epilogueOf(node, b, run, panel, block, out);
    runTiles(set, tile, panel, b.packed->depthwise, count);
  }
}

}  // namespace octconv
