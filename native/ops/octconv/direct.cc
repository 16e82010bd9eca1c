// Direct convolution of a block: T of the low pixels under it, then the register tiles, panel by panel.
#include "cpu.h"

namespace octconv {

Window pointsOf(const BranchPlan& b, const Sum& sum, const Window& block) {
  Window at = &sum == &b.low ? windowAt(b.main.grid, block, 1) : block;
  if (b.spec.overTime) return {0, 1, at.row, at.rowEnd};
  const int64_t o = std::max<int64_t>(1, b.spec.winograd);
  at.rowEnd = (at.rowEnd - 1) / o + 1, at.row /= o;
  return at;
}

Window windowOf(const TileSource& source, const Shape& points, const Window& at) {
  const Source& s = source.conv;
  const Shape& x = source.shape;
  const int64_t padH = source.rowTaps ? 0 : s.padding.h;
  const auto time = [&](int64_t plane, int64_t tap) {
    const int64_t t = plane % points.t * s.stride.t - s.padding.t + tap;
    return plane / points.t * x.t + std::clamp<int64_t>(t, 0, x.t);
  };
  const auto line = [&](int64_t row, int64_t tap) {
    return std::clamp<int64_t>(row * s.stride.h - padH + tap, 0, x.h);
  };
  return {time(at.plane, 0), time(at.planeEnd - 1, (s.kernel.t - 1) * s.dilation.t + 1), line(at.row, 0),
          line(at.rowEnd - 1, (s.kernel.h - 1) * s.dilation.h + 1)};
}

Held heldOf(const TileSource& source, const Shape& points, const Window& at, const Run& run, const char* memory) {
  const char* zeros = source.zeros.data();
  if (source.prepared) return {memory + source.prepared->copy, windowOf(source, points, at), zeros};
  return {run.in<char>(source.conv.input), {0, source.shape.n * source.shape.t, 0, source.shape.h}, zeros};
}

void pointTo(const TileSource& source, const Shape& grid, const Held& held, int64_t bytes, const Window& at,
             const char** to) {
  const Source& s = source.conv;
  const Shape& x = source.shape;
  const char* zeros = held.zeros;
  const int64_t rows = at.rowEnd - at.row, count = at.rows() * grid.w, pitch = source.pitch * bytes,
                step = s.stride.w * pitch;
  const int64_t columns = source.rowTaps ? 1 : s.kernel.w, padH = source.rowTaps ? 0 : s.padding.h,
                padW = source.rowTaps ? 0 : s.padding.w;
  for (int64_t row = 0; row < at.rows(); row++, to += grid.w) {
    const int64_t plane = at.plane + row / rows, n = plane / grid.t, t = plane % grid.t, y = at.row + row % rows;
    const char** line = to;
    for (int64_t kt = 0; kt < s.kernel.t; kt++) {
      const int64_t ti = t * s.stride.t - s.padding.t + kt * s.dilation.t;
      for (int64_t ky = 0; ky < s.kernel.h; ky++) {
        const int64_t yi = y * s.stride.h - padH + ky * s.dilation.h;
        const bool inside = ti >= 0 && ti < x.t && yi >= 0 && yi < x.h;
        const Window& w = held.window;
        const int64_t heldRow = (n * x.t + ti - w.plane) * (w.rowEnd - w.row) + yi - w.row;
        for (int64_t kx = 0; kx < columns; kx++, line += count) {
          // From `begin` to `end` inputs are inside.
          const int64_t first = kx * s.dilation.w - padW;
          const auto reach = [&](int64_t xi) {
            return std::clamp<int64_t>((xi - first + s.stride.w - 1) / s.stride.w, 0, grid.w);
          };
          const int64_t begin = inside && first < 0 ? reach(0) : inside ? 0 : grid.w;
          const int64_t end = inside && first + grid.w * s.stride.w > x.w ? std::max(begin, reach(x.w)) : grid.w;
          std::fill(line, line + begin, zeros);
          const char* const input = held.memory + (heldRow * x.w + first) * pitch;
          for (int64_t i = begin; i < end; i++) line[i] = input + i * step;
          std::fill(line + end, line + grid.w, zeros);
        }
      }
    }
  }
}

int64_t Sum::inputRows(int64_t rows) const {
  int64_t taps = 0;
  for (const TileSource& source : sources) taps = std::max(taps, source.conv.kernel.h);
  return slides * (rows - 1) + taps;
}

void pointToRows(const Sum& sum, const TileSource& source, const Held& held, int64_t bytes, const Window& at,
                 const char** to) {
  const Source& s = source.conv;
  const Shape& x = source.shape;
  const Window& w = held.window;
  const int64_t count = sum.rowPointers(), step = static_cast<int64_t>(sum.sources.size()) * count,
                rows = sum.inputRows(at.rowEnd - at.row), first = at.row * s.stride.h - s.padding.h,
                pitch = source.pitch * bytes;
  for (int64_t plane = at.plane; plane < at.planeEnd; plane++)
    for (int64_t y = first; y < first + rows; y++, to += step) {
      const bool inside = y >= w.row && y < w.rowEnd;
      const int64_t begin = inside ? std::min(s.padding.w, count) : count,
                    end = std::clamp(x.w + s.padding.w, begin, count);
      std::fill(to, to + begin, held.zeros);
      if (inside) {
        const char* input = held.memory + ((plane - w.plane) * (w.rowEnd - w.row) + y - w.row) * x.w * pitch;
        for (int64_t i = begin; i < end; i++, input += pitch) to[i] = input;
      }
      std::fill(to + end, to + count, held.zeros);
    }
}

static int64_t partsOf(int64_t pixels, const PanelTiles& tiles) { return (pixels + tiles.most - 1) / tiles.most; }

// Runs tiles of nearly equal size over pixels from the tile's own on, and leaves it behind them.
static void goOver(int64_t pixels, const PanelTiles& tiles, Tile& tile) {
  const int64_t parts = partsOf(pixels, tiles), each = pixels / parts, larger = pixels % parts;
  if (larger) tiles.functions[each + 1](tile, larger);  // so many tiles have one pixel more
  tiles.functions[each](tile, parts - larger);
}

static void setSteps(Tile& tile) {
  tile.outBytes = tile.pitch * (tile.raw ? 4 : static_cast<int64_t>(bytesOf(tile.out.dtype)));
  tile.residualBytes = tile.residualPitch * static_cast<int64_t>(bytesOf(tile.residual.dtype));
}

void runTiles(const TileSet& set, Tile tile, const Panel& panel, const PanelTiles& tiles, int64_t pixels) {
  setSteps(tile);
  // While these weights are used again and again, those behind them, which are next, come from memory.
  const int64_t wordBytes = panel.vectors * set.lanes * packedBytes(set.words);
  int64_t words = 0;
  for (size_t s = 0; s < tile.tapRunCount; s++) words += tile.tapRuns[s].taps * tile.tapRuns[s].bytes / 4;
  tile.ahead = tile.weights + words * wordBytes;
  tile.aheadStep = wordBytes / partsOf(pixels, tiles);
  goOver(pixels, tiles, tile);
}

// --- Pointers, and what is multiplied ---------------------------------------------------------------------------

PointerPlaces layOutPointers(const BranchPlan& b, Layout& layout) {
  const Shape& y = b.main.grid;
  const int64_t planes = b.spec.overTime ? 1 : b.planes, pixels = product(planes, b.rows, y.w),
                lowPixels = b.low.taps ? product(planes, half(b.rows), half(y.w)) : 0;
  PointerPlaces places{};
  places.main = layout.add(product(b.main.pointers(planes, b.rows), sizeof(void*)));
  places.low = layout.add(product(b.low.pointers(planes, half(b.rows)), sizeof(void*)));
  places.start = layout.add(b.low.taps ? product(pixels, sizeof(void*)) : 0);
  places.sums = layout.add(product(lowPixels, b.packed->set->shape.maxVectors, b.packed->set->lanes, 4));
  places.rows = layout.add(b.written == 1 ? product(2, y.w, sizeof(void*)) : 0);
  places.tiles = layout.add(b.packed->depthwise ? product(b.packed->panels.size(), sizeof(Tile)) : 0);
  return places;
}

Pointers pointersAt(const BranchPlan& b, const Block& block, const PointerPlaces& places, char* memory) {
  const auto at = [&](size_t place) { return reinterpret_cast<const char**>(memory + place); };
  const Window main = pointsOf(b, b.main, block), low = pointsOf(b, b.low, block);
  const int64_t width = b.main.grid.w, lowWidth = b.low.grid.w, rows = main.rowEnd - main.row,
                lowRows = low.rowEnd - low.row;
  Pointers p{at(places.main),
             at(places.low),
             nullptr,
             memory + places.sums,
             main.rows() * width,
             0,
             b.packed->set->shape.maxVectors * b.packed->set->lanes,
             rows,
             lowRows};
  if (b.low.taps == 0) return p;
  p.start = at(places.start);
  p.lowCount = low.rows() * lowWidth;
  const char** start = p.start;
  for (int64_t row = 0; row < main.rows(); row++) {
    const int64_t lowRow = row / rows * lowRows + (main.row + row % rows) / 2 - low.row;
    for (int64_t x = 0; x < width; x++) *start++ = p.sums + (lowRow * lowWidth + x / 2) * p.lowPitch * 4;
  }
  return p;
}

// Pixels of pairs of rows, as windows of 2 x 2; `rows` is room for two rows.
static void toWindows(const char** pixels, int64_t count, int64_t width, const char** rows) {
  for (const char** end = pixels + count; pixels < end;) {
    std::copy_n(pixels, 2 * width, rows);
    for (int64_t x = 0; x < width; x += 2, pixels += 4)
      pixels[0] = rows[x], pixels[1] = rows[x + 1], pixels[2] = rows[width + x], pixels[3] = rows[width + x + 1];
  }
}

// Sets what a tile of a panel reads of the indirection buffer of `count` points, all but where it begins.
static void setInputs(const Sum& sum, const Panel& panel, const char* weights, int64_t count, Tile& tile) {
  const std::vector<TapRun>& runs = sum.tapRuns[panel.tapRuns];
  tile.tapRuns = runs.data();
  tile.tapRunCount = runs.size();
  tile.weights = weights;
  tile.slides = sum.slides;
  tile.runStride = sum.rowPointers();
  tile.tapStride = sum.slides ? static_cast<int64_t>(sum.sources.size()) * tile.runStride : count;
}

// The pointers of a row of a block's points; a plane has `rows` of them.
static const char* const* pointersOf(const Sum& sum, const char* const* first, int64_t rows, int64_t row) {
  if (!sum.slides) return first + row * sum.points.w;
  const int64_t inputRow = row / rows * sum.inputRows(rows) + row % rows * sum.slides;
  return first + inputRow * static_cast<int64_t>(sum.sources.size()) * sum.rowPointers();
}

// The tiles of a panel over `count` points from `first` on: row by row, where they slide.
static void runRows(const BranchPlan& b, const Sum& sum, const Panel& panel, const PanelTiles& tiles,
                    const char* const* pointers, int64_t rows, int64_t first, int64_t count, Tile& tile) {
  const int64_t width = sum.points.w;
  if (!sum.slides) {
    tile.indirection = pointers + first;
    return runTiles(*b.packed->set, tile, panel, tiles, count / tiles.pixels);
  }
  setSteps(tile);
  for (int64_t row = first / width; row < (first + count) / width; row++) {
    tile.indirection = pointersOf(sum, pointers, rows, row);
    goOver(width, tiles, tile);
  }
}

void runLow(const BranchPlan& b, const Panel& panel, const Pointers& pointers, const char* weights) {
  if (b.low.taps == 0) return;
  Tile tile{};
  setInputs(b.low, panel, weights, pointers.lowCount, tile);
  tile.raw = true;
  tile.out.data = pointers.sums;
  tile.pitch = pointers.lowPitch;
  tile.channels = panel.channels;
  runRows(b, b.low, panel, tilesOf(*b.packed, panel), pointers.low, pointers.lowRows, 0, pointers.lowCount, tile);
}

void runMain(const BranchPlan& b, const Panel& panel, const Pointers& pointers, const char* weights, Tile tile,
             int64_t first, int64_t count) {
  setInputs(b.main, panel, weights, pointers.count, tile);
  tile.start = pointers.start ? pointers.start + first : nullptr;
  runRows(b, b.main, panel, tilesOf(b, panel), pointers.main, pointers.rows, first, count, tile);
}

// Row by row, of each all panels: panel by panel, pixels of 512 channels share two sets of the L1 cache, and 14 x 14 of
// them take .043 ms in place of .030 on Zen 5 (.020 with 528 channels, which take .019 panel by panel).
//
// Not fused with the convolution in front of it or behind it: of Oct-MobileNet V2 at 96 px, where what is between them
// fits into the L2 cache, the first 12 steps take 3 % less time per pixel than at 224 px: fusing gains no more.
template <class TileOf>
static void runDepthwise(const BranchPlan& b, const Block& block, const Pointers& pointers, int64_t stretch,
                         int64_t pixels, const TileOf& tileOf, Tile* tiles) {
  const std::vector<Panel>& panels = b.packed->panels;
  for (int64_t i = block.panelBegin; i < block.panelEnd; i++) {
    tiles[i] = tileOf(panels[i], stretch);
    setSteps(tiles[i]);
    setInputs(b.main, panels[i], b.packed->memory.data() + panels[i].weights, pointers.count, tiles[i]);
  }
  const int64_t width = b.main.grid.w, first = stretch * pixels / width;
  for (int64_t row = first; row < first + pixels / width; row++) {
    const char* const* indirection = pointersOf(b.main, pointers.main, pointers.rows, row);
    for (int64_t i = block.panelBegin; i < block.panelEnd; i++) {
      tiles[i].indirection = indirection;
      goOver(width, tilesOf(*b.packed, panels[i]), tiles[i]);
    }
  }
}

size_t directScratch(const BranchPlan& b) {
  Layout layout;
  layOutPointers(b, layout);
  return layout.size();
}

void runDirect(const Node& node, const BranchPlan& b, const Block& block, const Run& run, char* memory,
               const Destination& out) {
  Layout layout;
  const PointerPlaces places = layOutPointers(b, layout);
  const Pointers pointers = pointersAt(b, block, places, memory);
  const Shape& y = b.main.grid;
  for (const auto& [sum, to] : {std::pair{&b.main, pointers.main}, std::pair{&b.low, pointers.low}}) {
    const Window at = pointsOf(b, *sum, block);
    pointTo(*sum, sizeOf(b.spec.compute), at, to,
            [&](const TileSource& source) { return heldOf(source, sum->points, at, run, memory); });
  }
  if (b.written == 1) {
    auto* const rows = reinterpret_cast<const char**>(memory + places.rows);
    toWindows(pointers.main, pointers.count * b.main.taps, y.w, rows);
    if (pointers.start) toWindows(pointers.start, pointers.count, y.w, rows);
  }
  const Stretch stretch = stretchesOf(y, block);
  const char* packed = b.packed->memory.data();
  const auto tileOf = [&](const Panel& panel, int64_t k) {
    const int64_t pixel = ((block.plane + k) * y.h + block.row) * y.w;
    Tile tile{};
    static_cast<Epilogue&>(tile) = epilogueOf(node, b, run, panel, pixel, out.first + k * out.planeStep);
    return tile;
  };
  if (b.packed->depthwise) {
    auto* const tiles = reinterpret_cast<Tile*>(memory + places.tiles);
    for (int64_t k = 0; k < stretch.count; k++) runDepthwise(b, block, pointers, k, stretch.pixels, tileOf, tiles);
    return;
  }
  for (int64_t i = block.panelBegin; i < block.panelEnd; i++) {
    const Panel& panel = b.packed->panels[i];
    runLow(b, panel, pointers, packed + panel.low);
    for (int64_t k = 0; k < stretch.count; k++)
      runMain(b, panel, pointers, packed + panel.weights, tileOf(panel, k), k * stretch.pixels, stretch.pixels);
  }
}

}  // namespace octconv
