// Direct convolution of a block: T of the low pixels under it, then the register tiles, panel by panel.
#include "cpu.h"

namespace octconv {
namespace {

struct Scratch {  // offsets in a thread's scratch
  size_t indirection, lowIndirection, start, low, size;
};

Scratch scratchOf(const BranchPlan& b) {
  const Shape& y = b.main.grid;
  const int64_t pixels = product(b.planes, b.rows, y.w);
  const int64_t lowPixels = b.low.taps ? b.planes * half(b.rows) * half(y.w) : 0;
  Layout layout;
  Scratch s{};
  s.indirection = layout.add(product(pixels, b.main.taps, sizeof(void*)));
  s.lowIndirection = layout.add(product(lowPixels, b.low.taps, sizeof(void*)));
  s.start = layout.add(pixels * sizeof(void*));
  s.low = layout.add(product(lowPixels, b.packed->set->shape.maxVectors, b.packed->set->lanes, 4));
  s.size = layout.size();
  return s;
}

}  // namespace

Range pointRows(const BranchPlan& b, const Sum& sum, const Block& block) {
  const int64_t o = std::max<int64_t>(1, b.spec.winograd);
  const auto onGrid = [&](int64_t row) { return &sum == &b.low ? rowAt(b.main.grid, row, 1) : row; };
  const auto point = [&](int64_t row) { return row / sum.grid.h * sum.points.h + row % sum.grid.h / o; };
  return {point(onGrid(block.row)), point(onGrid(block.rowEnd - 1)) + 1};
}

Window windowOf(const TileSource& source, const Shape& points, const Range& rows) {
  const Source& s = source.conv;
  const Shape& x = source.shape;
  const int64_t first = rows.begin / points.h, last = (rows.end - 1) / points.h,
                padH = source.rowTaps ? 0 : s.padding.h;
  // Blocks of several planes have whole ones.
  const int64_t top = first == last ? rows.begin % points.h : 0,
                bottom = first == last ? (rows.end - 1) % points.h : points.h - 1;
  const auto time = [&](int64_t plane, int64_t tap) {
    const int64_t t = plane % points.t * s.stride.t - s.padding.t + tap;
    return plane / points.t * x.t + std::clamp<int64_t>(t, 0, x.t);
  };
  const auto line = [&](int64_t row, int64_t tap) {
    return std::clamp<int64_t>(row * s.stride.h - padH + tap, 0, x.h);
  };
  return {time(first, 0), time(last, (s.kernel.t - 1) * s.dilation.t + 1), line(top, 0),
          line(bottom, (s.kernel.h - 1) * s.dilation.h + 1)};
}

void pointTo(const Sum& sum, int64_t bytes, const Run& run, const char* memory, const Range& rows, const char** to) {
  const Shape& grid = sum.points;
  const int64_t count = (rows.end - rows.begin) * grid.w;
  for (const TileSource& source : sum.sources) {
    const Source& s = source.conv;
    const Shape& x = source.shape;
    const Window held = source.prepared ? windowOf(source, grid, rows) : Window{0, x.n * x.t, 0, x.h};
    const char *zeros = source.zeros.data(),
               *base = source.prepared ? memory + source.prepared->copy : run.in<char>(s.input);
    const int64_t pitch = source.pitch * bytes, step = s.stride.w * pitch;
    const int64_t columns = source.rowTaps ? 1 : s.kernel.w, padH = source.rowTaps ? 0 : s.padding.h,
                  padW = source.rowTaps ? 0 : s.padding.w;
    for (int64_t row = rows.begin; row < rows.end; row++) {
      const int64_t n = row / (grid.t * grid.h), t = row / grid.h % grid.t, y = row % grid.h;
      const char** line = to + (row - rows.begin) * grid.w;
      for (int64_t kt = 0; kt < s.kernel.t; kt++) {
        const int64_t ti = t * s.stride.t - s.padding.t + kt * s.dilation.t;
        for (int64_t ky = 0; ky < s.kernel.h; ky++) {
          const int64_t yi = y * s.stride.h - padH + ky * s.dilation.h;
          const bool inside = ti >= 0 && ti < x.t && yi >= 0 && yi < x.h;
          const int64_t at = (n * x.t + ti - held.plane) * (held.rowEnd - held.row) + yi - held.row;
          for (int64_t kx = 0; kx < columns; kx++, line += count) {
            // From `begin` to `end` inputs are inside.
            const int64_t first = kx * s.dilation.w - padW;
            const auto reach = [&](int64_t xi) {
              return std::clamp<int64_t>((xi - first + s.stride.w - 1) / s.stride.w, 0, grid.w);
            };
            const int64_t begin = inside && first < 0 ? reach(0) : inside ? 0 : grid.w;
            const int64_t end = inside && first + grid.w * s.stride.w > x.w ? std::max(begin, reach(x.w)) : grid.w;
            std::fill(line, line + begin, zeros);
            const int64_t inputAt = (at * x.w + first) * pitch;
            for (int64_t i = begin; i < end; i++) line[i] = base + inputAt + i * step;
            std::fill(line + end, line + grid.w, zeros);
          }
        }
      }
    }
    to += source.taps() * count;
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

void runDirect(const Node& node, const BranchPlan& b, const Block& block, const Run& run, char* memory, char* out) {
  const Shape& y = b.main.grid;
  const int64_t count = (block.rowEnd - block.row) * y.w;
  const Scratch at = scratchOf(b);
  const TileSet& set = *b.packed->set;
  const int64_t bytes = sizeOf(b.spec.compute);
  auto** indirection = reinterpret_cast<const char**>(memory + at.indirection);
  auto** lowIndirection = reinterpret_cast<const char**>(memory + at.lowIndirection);
  auto** start = reinterpret_cast<const char**>(memory + at.start);
  char* low = memory + at.low;
  const int64_t lowPitch = set.shape.maxVectors * set.lanes;
  int64_t lowCount = 0;
  pointTo(b.main, bytes, run, memory, pointRows(b, b.main, block), indirection);
  if (b.low.taps) {
    const Shape& l = b.low.grid;
    const Range lowRange = pointRows(b, b.low, block);
    const int64_t lowFirst = lowRange.begin * l.w;
    lowCount = lowRange.end * l.w - lowFirst;
    pointTo(b.low, bytes, run, memory, lowRange, lowIndirection);
    for (int64_t r = block.row; r < block.rowEnd; r++)
      for (int64_t x = 0; x < y.w; x++)
        start[(r - block.row) * y.w + x] = low + (rowAt(y, r, 1) * l.w + x / 2 - lowFirst) * lowPitch * 4;
  }

  for (int64_t i = block.panelBegin; i < block.panelEnd; i++) {
    const Panel& panel = b.packed->panels[i];
    Tile tile{};
    if (b.low.taps) {
      tile.indirection = lowIndirection;
      tile.tapStride = lowCount;
      tile.tapRuns = b.low.tapRuns[panel.group].data();
      tile.tapRunCount = b.low.tapRuns[panel.group].size();
      tile.weights = b.packed->memory.data() + panel.low;
      tile.raw = true;
      tile.out.data = low;
      tile.pitch = lowPitch;
      runTiles(set, tile, panel, false, lowCount);
    }
    tile.indirection = indirection;
    tile.tapStride = count;
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
