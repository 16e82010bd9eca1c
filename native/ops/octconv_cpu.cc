// octConv on the CPU.
//
// A task computes a block of output pixels (whole rows, or whole images where they are small) for some panels of
// output channels (1 to 4 vectors each). For each panel:
//   1. conv(xL; Wlh) of the low pixels under the block goes into T, a few KB that stay in the L1 cache;
//   2. the register tiles of the block START from their T (upsampling costs a load), add up all other sources,
//      add the residual, clamp and store.
// In the end P(y) is taken from the rows just stored.
// Nothing is shared between tasks, so neither a barrier nor the thread count can change a bit.
//
// Some inputs need preparing, in a pass before the tasks: one that the producer could not write as it is wanted (the
// network's own, an odd number of channels), which is converted, its channels filled up to whole words of 32 bits, and
// pooled; and one of few channels under a wide kernel (the stem's 7x7 over RGB), which is copied with its padding so
// that a row of taps is one tap of kernel.w * C channels.
#include "octconv_cpu.h"

#include "../cpu/rows.h"

namespace octconv {
namespace {

constexpr int64_t fewChannels = 16;           // below this an input under a wide kernel is copied with its padding
constexpr int64_t blockBytes = 256 << 10;     // input bytes of a block: a good part of the L2 cache
constexpr int64_t winogradBytes = 384 << 10;  // transformed inputs and sums of a block: most of the L2 cache
constexpr int64_t fewestTiles = 24;
constexpr int64_t fewestPixels = 48;  // of a block: a panel's weights are read once per block
constexpr double taskFlops = 2e6;     // about 20 us: less is not worth another thread
constexpr int64_t tasksPerThread = 6;

int prepare(FastPlan& plan, const Node& node, const Branch& branch, const Source& s, bool pad, Layout& layout) {
  const Size3 padding = pad ? s.padding : Size3(0, 0, 0);
  const int64_t bytes = sizeOf(branch.compute), c = node.in(s.input).c / s.groups;
  Prepared wanted{s.input, branch.compute, s.groups, padding, s.pool, s.scale, s.zero, node.in(s.input), {}, {}};
  for (size_t i = 0; i < plan.prepared.size(); i++) {
    const Prepared& p = plan.prepared[i];
    if (p.input == s.input && p.compute == branch.compute && p.groups == s.groups && p.padding == padding &&
        p.pool == s.pool && p.scale == s.scale && p.zero == s.zero)
      return static_cast<int>(i);
  }
  Shape shape = wanted.from;
  shape.h += 2 * padding.h, shape.w += 2 * padding.w;
  shape.c = s.groups * wordsOf(c, branch.compute) * perWord(branch.compute);
  for (int64_t times = 0; times <= s.pool; times++) {
    wanted.shapes.push_back(halved(shape, times));
    wanted.offsets.push_back(layout.add(wanted.shapes.back().elements() * bytes));
  }
  plan.prepared.push_back(std::move(wanted));
  return static_cast<int>(plan.prepared.size()) - 1;
}

Sum sumOf(FastPlan& plan, const Node& node, const Branch& branch, bool depthwise, bool low, Layout& layout) {
  Sum sum;
  const Shape y = node.out(branch.outputs[0]);
  const int64_t bytes = sizeOf(branch.compute);
  sum.grid = sum.points = low ? halved(y) : y;
  if (const int64_t o = branch.winograd; o > 0)
    sum.points.h = (sum.grid.h + o - 1) / o, sum.points.w = (sum.grid.w + o - 1) / o;
  sum.segments.resize(branch.groups());
  branch.eachSource([&](const Source& s) {
    if (s.upsample != low) return;
    const TensorType& x = node.inputs[s.input];
    const int64_t inGroup = x.shape.c / s.groups;
    const bool rowTaps = !branch.winograd && inGroup < fewChannels && s.kernel.w > 1 && s.groups == 1 &&
                         s.dilation.w == 1 && s.pool == 0;
    const bool whole = depthwise || inGroup * bytes % 4 == 0;
    const bool asIs = x.dtype == activationOf(branch.compute) && whole && s.pool == 0 && !rowTaps;
    TileSource source{branch.winograd ? overTiles(s, branch.winograd) : s, -1, x.shape, {}, rowTaps};
    // A depthwise convolution reads elements, not words: one group, as wide as it is.
    Source read = s;
    if (depthwise) read.groups = 1;
    if (!asIs) source.prepared = prepare(plan, node, branch, read, rowTaps, layout);
    if (!asIs) source.shape = plan.prepared[source.prepared].shapes.back();
    const int64_t pitch = source.shape.c * bytes, channels = pitch / s.groups;
    for (int64_t g = 0; g < branch.groups(); g++)
      sum.segments[g].push_back({source.taps(),
                                 rowTaps     ? s.kernel.w * pitch
                                 : depthwise ? 0
                                             : channels,
                                 depthwise ? g * bytes : g * channels});
    source.zeros.assign(rowTaps ? s.kernel.w * pitch : pitch,
                        static_cast<char>(branch.compute == Compute::i8 ? s.zero : 0));
    sum.taps += source.taps();
    sum.sources.push_back(std::move(source));
  });
  return sum;
}

struct Scratch {  // offsets in a thread's scratch
  size_t rows, lowRows, start, low, size;
};

Scratch scratchOf(const BranchPlan& b) {
  const Shape& y = b.main.grid;
  const int64_t pixels = b.planes * b.rows * y.w;
  const int64_t lowPixels = b.low.taps ? b.planes * half(b.rows) * half(y.w) : 0;
  Layout layout;
  Scratch s{};
  s.rows = layout.add(pixels * b.main.taps * sizeof(void*));
  s.lowRows = layout.add(lowPixels * b.low.taps * sizeof(void*));
  s.start = layout.add(pixels * sizeof(void*));
  s.low = layout.add(lowPixels * b.packed->set->shape.maxVectors * b.packed->set->lanes * 4);
  s.size = layout.size();
  return s;
}

// P of what a block has just stored. Of all its panels at once: lines of one panel, a power of two apart, share few
// sets of the cache (the first stage's last convolutions took 10 % longer panel by panel).
void halveBlock(const Run& run, const BranchPlan& b, const Node& node, const Block& block) {
  const Panel panels = b.packed->joined(block.panelBegin, block.panelEnd);
  const auto halve = OCTCONV_PICK(halveRows);
  const DType dtype = node.outputs[b.spec.outputs[0]].dtype;
  const auto bytes = static_cast<int64_t>(bytesOf(dtype));
  for (size_t k = 1; k < b.spec.outputs.size(); k++) {
    const Shape from = node.out(b.spec.outputs[k - 1]), to = node.out(b.spec.outputs[k]);
    const int64_t scale = int64_t{1} << (k - 1);
    for (int64_t r = block.row; r < block.rowEnd;) {  // plane by plane
      const int64_t plane = r / b.main.grid.h, y = r % b.main.grid.h,
                    end = std::min(block.rowEnd - plane * b.main.grid.h, b.main.grid.h);
      const int64_t first = y / scale, last = (end + scale - 1) / scale;
      const int64_t in = (plane * from.h + first) * from.w * from.c, out = (plane * to.h + first / 2) * to.w * to.c;
      halve(dtype, run.out<char>(b.spec.outputs[k - 1]) + (in + panels.begin) * bytes, from.c, last - first, from.w,
            run.out<char>(b.spec.outputs[k]) + (out + panels.begin) * bytes, to.c, static_cast<int>(panels.channels));
      r = plane * b.main.grid.h + end;
    }
  }
}

Elements elementsOf(void* data, const TensorType& type) { return {data, type.dtype, type.scale, type.zero}; }

void runDirect(const FastPlan& plan, const Node& node, const BranchPlan& b, const Block& block, const Run& run,
               char* memory) {
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
    const auto lowRow = [&](int64_t r) { return r / y.h * l.h + r % y.h / 2; };
    const int64_t lowFirst = lowRow(block.row) * l.w;
    lowCount = (lowRow(block.rowEnd - 1) + 1) * l.w - lowFirst;
    pointTo(plan, b.low, bytes, run, lowFirst, lowFirst + lowCount, lowRows);
    for (int64_t r = block.row; r < block.rowEnd; r++)
      for (int64_t x = 0; x < y.w; x++)
        start[(r - block.row) * y.w + x] = low + (lowRow(r) * l.w + x / 2 - lowFirst) * lowPitch * 4;
  }

  for (int64_t i = block.panelBegin; i < block.panelEnd; i++) {
    const Panel& panel = b.packed->panels[i];
    Tile tile{};
    if (b.low.taps) {
      tile.rows = lowRows;
      tile.rowStride = lowCount;
      tile.segments = b.low.segments[panel.group].data();
      tile.segmentCount = b.low.segments[panel.group].size();
      tile.weights = plan.weights->memory.data() + panel.low;
      tile.raw = true;
      tile.out.data = low;
      tile.pitch = lowPitch;
      runTiles(set, tile, panel, false, lowCount);
    }
    tile.rows = rows;
    tile.rowStride = count;
    tile.segments = b.main.segments[panel.group].data();
    tile.segmentCount = b.main.segments[panel.group].size();
    tile.weights = plan.weights->memory.data() + panel.weights;
    tile.start = b.low.taps ? start : nullptr;
    tile.raw = false;
    static_cast<Epilogue&>(tile) = epilogueOf(plan, node, b, run, panel, first);
    runTiles(set, tile, panel, b.packed->depthwise, count);
  }
}

void runTask(const FastPlan& plan, const Node& node, const BranchPlan& b, int64_t task, const Run& run, char* memory) {
  const Shape& y = b.main.grid;
  const int64_t at = task / b.panelGroups, plane = at / b.rowBlocks * b.planes;
  const int64_t row = plane * y.h + at % b.rowBlocks * b.rows;
  const auto [begin, end] = piece(static_cast<int64_t>(b.packed->panels.size()), b.panelGroups, task % b.panelGroups);
  const Block block{row, std::min(row + b.planes * b.rows, std::min((plane + b.planes) * y.h, y.rows())), begin, end};
  (b.spec.winograd ? runWinograd : runDirect)(plan, node, b, block, run, memory);
  halveBlock(run, b, node, block);
}

// Converts, pads and pools one plane.
void runPrepared(const Prepared& p, const Node& node, const Run& run, int64_t plane) {
  const auto convert = OCTCONV_PICK(convertElements);
  const TensorType& type = node.inputs[p.input];
  const Shape& shape = p.shapes[0];
  const int64_t bytes = sizeOf(p.compute), inGroup = p.from.c / p.groups, group = shape.c / p.groups;
  const auto fromBytes = static_cast<int64_t>(bytesOf(type.dtype));
  const auto planeOf = [&](size_t k) {
    return run.shared + p.offsets[k] + plane * p.shapes[k].h * p.shapes[k].w * shape.c * bytes;
  };
  const char* from = run.in<char>(p.input) + plane * p.from.h * p.from.w * p.from.c * fromBytes;
  char* to = planeOf(0);
  const auto put = [&](int64_t count) {  // elements that lie together on both sides
    convert(elementsOf(const_cast<char*>(from), type), {to, activationOf(p.compute), p.scale, p.zero}, count);
    from += count * fromBytes, to += count * bytes;
  };
  const auto outside = static_cast<char>(p.compute == Compute::i8 ? p.zero : 0);
  const auto fill = [&](int64_t count) {
    std::fill(to, to + count * bytes, outside);
    to += count * bytes;
  };
  fill(p.padding.h * shape.w * shape.c);
  for (int64_t y = 0; y < p.from.h; y++) {
    fill(p.padding.w * shape.c);
    // Converted at the end of their row, then moved to their places from the front.
    const int64_t count = p.from.w * p.groups;
    char* row = to;
    to += count * (group - inGroup) * bytes;
    const char* packed = to;
    put(count * inGroup);
    // Byte by byte: there are few, too few for a call.
    for (int64_t i = 0; group > inGroup && i < count; i++) {
      for (int64_t k = 0; k < inGroup * bytes; k++) *row++ = *packed++;
      for (int64_t k = inGroup * bytes; k < group * bytes; k++) *row++ = outside;
    }
    fill(p.padding.w * shape.c);
  }
  fill(p.padding.h * shape.w * shape.c);
  const auto halve = OCTCONV_PICK(halveRows);
  for (size_t k = 1; k < p.shapes.size(); k++)
    halve(activationOf(p.compute), planeOf(k - 1), shape.c, p.shapes[k - 1].h, p.shapes[k - 1].w, planeOf(k), shape.c,
          static_cast<int>(shape.c));
}

// How a branch is cut into tasks; by shape and thread count only.
void split(BranchPlan& b, int threads) {
  const Shape& y = b.main.grid;
  const int64_t o = b.spec.winograd, bytes = sizeOf(b.spec.compute);
  int64_t inputBytes = 0, weightBytes = 0;  // per output pixel; of all panels
  double flops = 0;
  for (const Sum* sum : {&b.main, &b.low})
    for (const TileSource& s : sum->sources) {
      const int64_t products = y.c * (s.shape.c / s.conv.groups) * s.conv.taps();
      // Transformed inputs and sums of Winograd's tiles stay in the cache together.
      const int64_t tile =
          positionsOf(b.spec) * (s.shape.c * packedInputBytes(b.spec) + y.c * 4) / std::max<int64_t>(1, o * o);
      inputBytes += (o ? tile : s.shape.c * bytes * s.conv.stride.h * s.conv.stride.w) / (s.conv.upsample ? 4 : 1);
      weightBytes += products * packedInputBytes(b.spec);
      flops += 2. * static_cast<double>(sum->points.pixels() * products);
    }
  const auto cut = [&](int64_t pixels) {
    // Row pairs that share a low row or a pooled row stay together, as do rows of a tile, or of tiles that share one on
    // the low grid. Blocks are of nearly equal size: one with the last few rows would read all weights for them.
    const int64_t shared = int64_t{1} << std::max<size_t>(b.spec.outputs.size() - 1, b.low.taps ? 1 : 0);
    const int64_t align = o ? std::max(shared, b.low.taps ? 2 * o : o) : shared;
    const int64_t plane = y.h * y.w, count = std::max<int64_t>(1, (plane + pixels / 2) / pixels);
    b.planes = std::clamp<int64_t>(pixels / plane, 1, y.n * y.t);
    b.rows = std::min(y.h, ((y.h + count - 1) / count + align - 1) / align * align);
    b.rowBlocks = (y.h + b.rows - 1) / b.rows;
    b.blocks = (y.n * y.t + b.planes - 1) / b.planes * b.rowBlocks;
  };
  int64_t wanted = std::max(fewestPixels, (o ? winogradBytes : blockBytes) / std::max<int64_t>(1, inputBytes));
  // Weights that come from memory are read for enough tiles.
  if (o && weightBytes > winogradBytes) wanted = std::max(wanted, fewestTiles * o * o);
  cut(wanted);
  if (threads == 1) return;
  // Every panel group of Winograd's tiles transforms the inputs again: no more of them than threads.
  const int64_t most = int64_t{o ? 2 : tasksPerThread} * threads;
  const int64_t useful = std::clamp<int64_t>(static_cast<int64_t>(flops / taskFlops), 1, most);
  const auto groups = [&] {
    const int64_t wanted = o ? std::min<int64_t>(useful, threads) : useful;
    return std::clamp<int64_t>((wanted + b.blocks - 1) / b.blocks, 1, static_cast<int64_t>(b.packed->panels.size()));
  };
  // More blocks read the weights again, more panel groups the input: the larger stays whole.
  const bool fewWeights =
      o ? weightBytes < winogradBytes : weightBytes < inputBytes * y.pixels() || groups() * b.blocks < useful;
  if (b.blocks < useful && fewWeights) cut(std::max(fewestPixels, std::min(wanted, y.pixels() / useful)));
  b.panelGroups = groups();
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
    const int64_t pitch = x.c * bytes;
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

Epilogue epilogueOf(const FastPlan& plan, const Node& node, const BranchPlan& b, const Run& run, const Panel& panel,
                    int64_t pixel) {
  const int64_t pitch = b.main.grid.c, corner = pixel * pitch + panel.begin;
  const auto from = [&](void* data, const TensorType& type) {
    return elementsOf(static_cast<char*>(data) + corner * static_cast<int64_t>(bytesOf(type.dtype)), type);
  };
  const size_t output = b.spec.outputs[0];
  const Elements out = from(run.outputs[output], node.outputs[output]),
                 residual = b.spec.residual ? from(run.inputs[*b.spec.residual], node.inputs[*b.spec.residual])
                                            : Elements{nullptr, out.dtype};
  const bool bytes = out.dtype == DType::u8;
  const auto zero = static_cast<float>(out.zero);
  const float steps = 1 / out.scale, residualSteps = residual.scale * steps, low = b.spec.low * steps + zero,
              high = b.spec.high * steps + zero;
  return {b.spec.compute == Compute::i8 ? plan.weights->floats(panel.scale) : nullptr,
          plan.weights->floats(panel.bias),
          steps,
          zero - static_cast<float>(residual.zero) * residualSteps,
          residual,
          residualSteps,
          out,
          pitch,
          panel.channels,
          bytes ? std::clamp(low, 0.f, 255.f) : low,
          bytes ? std::clamp(high, 0.f, 255.f) : high};
}

void runTiles(const TileSet& set, Tile tile, const Panel& panel, bool depthwise, int64_t count) {
  const int64_t most = depthwise ? 4 : set.shape.maxPixels[panel.vectors], parts = (count + most - 1) / most;
  const TileFunction* functions = depthwise ? set.depthwise : set.tiles[panel.vectors];
  tile.outBytes = tile.pitch * (tile.raw ? 4 : static_cast<int64_t>(bytesOf(tile.out.dtype)));
  tile.residualBytes = tile.pitch * static_cast<int64_t>(bytesOf(tile.residual.dtype));
  // While these weights are used again and again, those behind them, which are next, come from memory.
  const int64_t wordBytes = panel.vectors * set.lanes * packedBytes(set.words);
  int64_t words = 0;
  for (size_t s = 0; s < tile.segmentCount; s++) words += tile.segments[s].taps * tile.segments[s].bytes / 4;
  tile.ahead = tile.weights + words * wordBytes;
  tile.aheadStep = wordBytes / parts;
  const int64_t pixels = count / parts, larger = count % parts;  // so many tiles have one pixel more
  if (larger) functions[pixels + 1](tile, larger);
  functions[pixels](tile, parts - larger);
}

Kernel makeFast(const Node& node, const std::vector<Branch>& branches) {
  const auto unfit = [&] { fail("octConv: the weights given to '", node.name, "' were packed for another layer"); };
  auto plan = std::make_shared<FastPlan>();
  plan->weights = &node.weights<PackedWeights>();
  if (plan->weights->branches.size() != branches.size()) unfit();
  Layout shared;
  size_t threadBytes = 0;
  std::ostringstream text;
  for (size_t i = 0; i < branches.size(); i++) {
    const PackedWeights::PerBranch& packed = plan->weights->branches[i];
    if (packed.compute != branches[i].compute || packed.winograd != branches[i].winograd) unfit();
    const TileSet& set = *packed.set;
    BranchPlan b{branches[i], &packed, sumOf(*plan, node, branches[i], packed.depthwise, false, shared),
                 sumOf(*plan, node, branches[i], packed.depthwise, true, shared)};
    const auto words = [&](const Sum& sum) {
      int64_t count = 0;
      for (const Segment& s : sum.segments[0])
        count += s.taps * (packed.depthwise ? 1 : s.bytes / sizeOf(packed.compute) / perPackedWord(branches[i]));
      return count;
    };
    if (words(b.main) != packed.mainWords || words(b.low) != packed.lowWords) unfit();
    if (packed.panels.back().begin + packed.panels.back().channels != b.main.grid.c) unfit();
    split(b, node.threads);
    threadBytes = std::max(threadBytes, b.spec.winograd ? winogradScratch(b) : scratchOf(b).size);
    const int64_t vectors = packed.panels[0].vectors;
    text << (i ? ", " : "")
         << (branches[i].winograd == 4 ? "winograd 4x4, "
             : branches[i].winograd    ? "winograd 2x2, "
                                       : "")
         << (packed.depthwise ? "depthwise " : "tile ") << (packed.depthwise ? 4 : set.shape.maxPixels[vectors]) << 'x'
         << vectors * set.lanes << ' ' << b.blocks << " blocks x " << b.panelGroups;
    plan->branches.push_back(std::move(b));
  }
  return {[plan, node](Run& run) {
            int64_t planes = 0, tasks = 0;
            for (const Prepared& p : plan->prepared) planes += p.from.n * p.from.t;
            run.parallel(planes, [&](int64_t task, char*) {
              for (const Prepared& p : plan->prepared) {
                if (task < p.from.n * p.from.t) return runPrepared(p, node, run, task);
                task -= p.from.n * p.from.t;
              }
            });
            for (const BranchPlan& b : plan->branches) tasks += b.tasks();
            run.parallel(tasks, [&](int64_t task, char* scratch) {
              for (const BranchPlan& b : plan->branches) {
                if (task < b.tasks()) return runTask(*plan, node, b, task, run, scratch);
                task -= b.tasks();
              }
            });
          },
          shared.size(), threadBytes, text.str()};
}

}  // namespace octconv
