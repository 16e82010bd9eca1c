// octConv on the CPU.
//
// A task computes a block of output pixels (whole rows, or whole images where they are small) for some panels of
// output channels (1 to 4 vectors each). For each panel:
//   1. conv(xL; Wlh) of the low pixels under the block goes into T, a few KB that stay in the L1 cache;
//   2. the register tiles of the block START from their T (upsampling costs a load), add up all other sources,
//      add the residual, clamp and store.
// Where nobody wants y but P(y), tiles go over windows of 2 x 2 pixels and store their means.
// In the end the other stores, batch normalised, clamped, pooled or otherwise activated, are made of the rows just
// stored; sums of their rows become means when all tasks have ended. A gate is one pass in place of 1 and 2.
// Tasks share no element, and rows are summed in their order, so neither blocks nor the thread count can change a bit.
//
// Some inputs need preparing, row by row in the scratch of the task that reads them: one with a prologue; one that
// the producer could not write as it is wanted (the network's own; one that other kernels than pitched ones also
// read, mean, upsample, binary ops or views; an odd number of channels in a slice or a group), which is converted, its
// channels filled up to whole words of 32 bits, and pooled; and one of few channels under a wide kernel (the stem's 7x7
// over RGB), copied with its padding so that a row of taps is one of kernel.w * C channels. Rows that two blocks, panel
// groups or sources read are prepared for each.
#include "cpu.h"

#include "../../cpu/floats.h"

namespace octconv {
namespace {

constexpr int64_t fewChannels = 16;           // below this an input under a wide kernel is copied with its padding
constexpr int64_t blockBytes = 256 << 10;     // input bytes of a block: a good part of the L2 cache
constexpr int64_t winogradBytes = 384 << 10;  // transformed inputs and sums of a block: most of the L2 cache
constexpr int64_t fewestTiles = 24;
constexpr int64_t fewestPixels = 48;  // of a block: a panel's weights are read once per block
constexpr double taskFlops = 2e6;     // about 20 us: less is not worth another thread
constexpr int64_t tasksPerThread = 6;
constexpr double gateFlops = 64;  // as many as take as long as a gated element, which comes from a cache or memory

Elements elementsOf(void* data, const TensorType& type) { return {data, type.dtype, type.scale, type.zero}; }

// --- Inputs -----------------------------------------------------------------------------------------------------

Prepared prepare(const Shape& x, int64_t groups, const Size3& padding, const Branch& branch) {
  Shape padded = x;
  padded.h += 2 * padding.h, padded.w += 2 * padding.w;
  padded.c = groups * filled(x.c / groups, branch);
  return {groups, padding, padded};
}

// The stride of a source whose taps are rows of 3 neighbours, or 0: others have a pointer per tap.
int slideOf(const Source& s) {
  const bool rows = s.kernel.w == 3 && s.kernel.t == 1 && s.dilation.h == 1 && s.dilation.w == 1;
  return rows && s.stride.t == 1 && s.padding.t == 0 && s.stride.h == s.stride.w && s.stride.w <= 2
             ? static_cast<int>(s.stride.w)
             : 0;
}

// The sum over a branch's main sources, or over its upsampled ones (`low`).
Sum sumOf(const Node& node, const BranchPlan& b, const Shape& y, bool low) {
  const Branch& branch = b.spec;
  const bool across = b.packed->acrossGroups > 0;
  Sum sum;
  const int64_t bytes = branch.overTime ? packedInputBytes(branch) : sizeOf(branch.compute);
  sum.grid = sum.points = low ? halved(y) : y;
  const bool tiles = branch.winograd && !branch.overTime;
  if (const int64_t o = branch.winograd; tiles)
    sum.points.h = (sum.grid.h + o - 1) / o, sum.points.w = (sum.grid.w + o - 1) / o;
  if (branch.overTime) sum.points.n = sum.points.t = 1;  // a position
  sum.tapRuns.resize(across ? b.packed->panels.size() : branch.groups());
  size_t next = 0;
  branch.eachSource([&](const Source& s) {
    const PackedBranch::ScaleShift& norm = b.packed->prologues[next++];
    if (s.upsample != low) return;
    const TensorType& x = node.inputs[s.input];
    const int64_t inGroup = x.shape.c / s.groups;
    const bool rowTaps =
        !tiles && inGroup < fewChannels && s.kernel.w > 1 && s.groups == 1 && s.dilation.w == 1 && s.pool == 0;
    Shape read = x.shape;  // what tiles read of it; beyond the channels are zeros
    if (!across) read.c = s.groups * filled(inGroup, branch);
    const bool whole = read.c == x.shape.c || (s.groups == 1 && read.c <= x.shape.c + x.pad);
    const bool asIs =
        x.dtype == operandType(branch.compute) && whole && s.pool == 0 && !rowTaps && s.prologue.isIdentity();
    TileSource source{tiles ? overTiles(s, branch.winograd) : branch.overTime ? atPosition(s) : s,
                      {},
                      read,
                      x.pitch(),
                      {},
                      {},
                      rowTaps};
    if (!asIs) {
      source.prepared = prepare(x.shape, s.groups, rowTaps ? s.padding : Size3(0, 0, 0), branch);
      // Across groups tiles read elements, not words: nothing is filled up.
      if (across) source.prepared->groups = 1, source.prepared->padded.c = x.shape.c;
      if (norm.channels)
        source.prepared->scale = b.packed->floats(norm.scale), source.prepared->shift = b.packed->floats(norm.shift);
      source.shape = halved(source.prepared->padded, s.pool);
      source.pitch = source.shape.c;
    }
    if (branch.overTime) source.shape.n = source.shape.t = 1, source.pitch = source.shape.c;
    const int64_t all = source.shape.c * bytes, channels = all / s.groups;
    if (across) {
      // Panels read the inputs from that of their first channel on.
      const int64_t outputs = b.packed->channels / s.groups, taken = b.packed->taken, words = inGroup / taken;
      const bool own = outputs == words && (words == 2 || words == 4);  // which divide the lanes of a panel
      std::vector<int32_t> first;
      for (const Panel& panel : b.packed->panels)
        for (int64_t c = panel.begin; c < panel.begin + b.packed->set->lanes; c++)
          first.push_back(static_cast<int32_t>(std::min(c, panel.begin + panel.channels - 1) / outputs * words));
      source.at = std::make_shared<const std::vector<int32_t>>(std::move(first));
      for (size_t i = 0; i < sum.tapRuns.size(); i++) {
        const int32_t* at = source.at->data() + i * b.packed->set->lanes;
        sum.tapRuns[i].push_back({source.taps(), 0, *at * taken * bytes, at, words, source.shape.c / taken - *at, own});
      }
    } else {
      for (int64_t g = 0; g < branch.groups(); g++)
        sum.tapRuns[g].push_back({source.taps(), rowTaps ? s.kernel.w * all : channels, g * channels});
    }
    source.zeros.assign(static_cast<size_t>(rowTaps ? product(s.kernel.w, all) : all),
                        static_cast<char>(branch.compute == Compute::i8 ? s.zero : 0));
    sum.taps += source.taps();
    const int slide = across ? slideOf(s) : 0;
    sum.slides = sum.sources.empty() || sum.slides == slide ? slide : 0;
    sum.sources.push_back(std::move(source));
  });
  return sum;
}

// One row of a padded plane, counted from the plane's own first: converted or activated, channels filled up.
void prepareRow(const TileSource& source, const TensorType& type, Compute compute, const char* from, char* to) {
  const Prepared& p = *source.prepared;
  const Activation& prologue = source.conv.prologue;
  const int64_t bytes = sizeOf(compute), width = type.shape.w, c = type.shape.c, inGroup = c / p.groups,
                group = p.padded.c / p.groups, fromBytes = type.pitch() * static_cast<int64_t>(bytesOf(type.dtype));
  const auto convert = OCTCONV_PICK(convertElements);
  const auto activate = OCTCONV_PICK(activatePixels);
  const auto outside = static_cast<char>(compute == Compute::i8 ? source.conv.zero : 0);
  const int64_t margin = p.padding.w * p.padded.c * bytes;
  const auto fill = [&](int64_t count) { to = std::fill_n(to, count, outside); };
  if (!from) return fill(p.padded.w * p.padded.c * bytes);
  fill(margin);
  // Converted at the end of the row, then moved to their places from the front.
  const int64_t gaps = width * p.groups * (group - inGroup) * bytes;
  const char* packed = to + gaps;
  const int64_t together = !prologue.isIdentity() || !type.gap ? width : 1;
  for (int64_t x = 0; x < width; x += together) {
    const Elements in = elementsOf(const_cast<char*>(from) + x * fromBytes, type),
                   out{to + gaps + x * c * bytes, operandType(compute), source.conv.scale, source.conv.zero};
    if (prologue.isIdentity())
      convert(in, out, together * c);
    else
      activate({in, type.pitch(), out, c, p.scale, p.shift, prologue.least, prologue.most}, together, c);
  }
  if (gaps == 0) {
    to += width * c * bytes;
  } else {
    // Byte by byte: there are few, too few for a call. RGB in i8 by counts that the compiler knows: the stem of
    // Oct-I3D-50 16.2 -> 14.5 ms on Zen 5.
    const auto spread = [&](auto some, auto gap) {
      for (int64_t i = 0; i < width * p.groups; i++) {
        for (int64_t k = 0; k < some; k++) *to++ = *packed++;
        for (int64_t k = 0; k < gap; k++) *to++ = outside;
      }
    };
    const int64_t pixel = inGroup * bytes, filling = (group - inGroup) * bytes;
    if (pixel == 3 && filling == 1)
      spread(std::integral_constant<int64_t, 3>{}, std::integral_constant<int64_t, 1>{});
    else
      spread(pixel, filling);
  }
  fill(margin);
}

// The rows that a block's tiles read of a source.
void prepareRows(const TileSource& source, const Node& node, Compute compute, const Window& window, const Run& run,
                 char* memory) {
  const auto halve = OCTCONV_PICK(halveRows);
  const Prepared& p = *source.prepared;
  const Source& s = source.conv;
  const TensorType& type = node.inputs[s.input];
  const Shape& x = type.shape;
  const int64_t inRow = x.w * type.pitch() * static_cast<int64_t>(bytesOf(type.dtype)), bytes = sizeOf(compute),
                row = source.shape.w * source.shape.c * bytes, paddedRow = p.padded.w * p.padded.c * bytes;
  char* to = memory + p.copy;
  for (int64_t plane = window.plane; plane < window.planeEnd; plane++)
    for (int64_t y = window.row; y < window.rowEnd; y++, to += row) {
      // Pooled while they are in the cache: 2^pool rows become one, through levels that lie one behind the other.
      char* level = s.pool ? memory + p.between : to;
      Shape rows = p.padded;
      rows.h = std::min(p.padded.h - (y << s.pool), int64_t{1} << s.pool);
      for (int64_t i = 0; i < rows.h; i++) {
        const int64_t at = (y << s.pool) + i - p.padding.h;
        const bool inside = at >= 0 && at < x.h;
        prepareRow(source, type, compute, inside ? run.in<char>(s.input) + (plane * x.h + at) * inRow : nullptr,
                   level + i * paddedRow);
      }
      for (int64_t k = s.pool; k > 0; k--, rows = halved(rows)) {
        char* next = k == 1 ? to : level + rows.h * rows.w * rows.c * bytes;
        halve(operandType(compute), level, rows.c, rows.h, rows.w, next, rows.c, static_cast<int>(rows.c));
        level = next;
      }
    }
}

// --- Stores -----------------------------------------------------------------------------------------------------

// Groups a branch's stores, the one that tiles write first: the only one, if it is just clamped; else y itself, as f32.
// lib/graph/algorithm.ts asks the same (`writtenType`).
std::vector<StoreGroup> groupStores(const Node& node, const BranchPlan& b, const Shape& y) {
  std::vector<StoreGroup> groups;
  const auto sameType = [](const TensorType& a, const TensorType& b) {
    return a.dtype == b.dtype && a.scale == b.scale && a.zero == b.zero;
  };
  for (size_t k = 0; k < b.spec.stores.size(); k++) {
    const Store& store = b.spec.stores[k];
    TensorType type = store.mean ? TensorType{DType::f32, y} : node.outputs[store.output];
    type.shape = y, type.gap = type.pad = 0;
    auto group = std::find_if(groups.begin(), groups.end(), [&](const StoreGroup& g) {
      return g.activation == store.activation && sameType(g.type, type) &&
             !(store.mean ? g.mean : g.outputs[store.pool]);
    });
    if (group == groups.end()) {
      const PackedBranch::ScaleShift& norm = b.packed->stores[k];
      const float *scale = norm.channels ? b.packed->floats(norm.scale) : nullptr,
                  *shift = norm.channels ? b.packed->floats(norm.shift) : nullptr;
      groups.push_back({type, store.activation, scale, shift, {y.c, y.c, y.c}});
      group = groups.end() - 1;
    }
    const int64_t pitch = node.outputs[store.output].pitch();
    if (store.mean) {
      group->mean = store.output;
      group->meanPitch = pitch;
    } else {
      group->levels = std::max(group->levels, static_cast<int>(store.pool) + 1);
      group->outputs[store.pool] = store.output;
      group->pitches[store.pool] = pitch;
    }
  }
  if (groups.size() == 1 && !groups[0].scale && !groups[0].activation.function) return groups;
  for (StoreGroup& group : groups)
    if (group.activation.isIdentity() && group.type.dtype == DType::f32) {
      std::swap(groups[0], group);
      return groups;
    }
  groups.insert(groups.begin(), {{DType::f32, y}, {}, nullptr, nullptr, {y.c, y.c, y.c}});
  return groups;
}

// Lays out the levels that are no outputs, and the sums of rows in the memory of the step; gives the end of the
// scratch.
size_t layOutStores(BranchPlan& b, size_t from, Layout& shared) {
  Layout layout;
  layout.add(from);
  const Shape y = b.main.grid;
  for (StoreGroup& group : b.stores) {
    if (group.mean) group.rowSums = shared.add(product(y.rows(), y.c, sizeof(double)));
    for (int k = b.written; k < group.levels; k++) {
      const Shape level = halved(y, k);
      const int64_t rows = product(b.planes, std::min(level.h, (b.rows >> k) + 1));
      if (!group.outputs[k]) group.scratch[k] = layout.add(product(rows, level.w, level.c, bytesOf(group.type.dtype)));
    }
  }
  return layout.size();
}

// Where a block's part of a level is.
Destination levelAt(const BranchPlan& b, const StoreGroup& group, int k, const Block& block, const Run& run,
                    char* memory) {
  const Window at = windowAt(b.main.grid, block, k);
  const Shape level = halved(b.main.grid, k);
  const int64_t row = level.w * group.pitches[k] * static_cast<int64_t>(bytesOf(group.type.dtype));
  if (!group.outputs[k]) return {memory + group.scratch[k], (at.rowEnd - at.row) * row};
  return {run.out<char>(*group.outputs[k]) + (at.plane * level.h + at.row) * row, level.h * row};
}

// P of a level, of all panels at once: lines of one panel, a power of two apart, share few sets of the cache (the first
// stage's last convolutions took 10 % longer panel by panel).
void halveLevel(const BranchPlan& b, const StoreGroup& group, int k, const Block& block, const Panel& panels,
                const Destination& from, const Destination& to) {
  const auto halve = OCTCONV_PICK(halveRows);
  const Window in = windowAt(b.main.grid, block, k - 1);
  const int64_t begin = panels.begin * static_cast<int64_t>(bytesOf(group.type.dtype));
  for (int64_t p = 0; p < block.planes(); p++)
    halve(group.type.dtype, from.first + p * from.planeStep + begin, group.pitches[k - 1], in.rowEnd - in.row,
          halved(b.main.grid, k - 1).w, to.first + p * to.planeStep + begin, group.pitches[k],
          static_cast<int>(panels.channels));
}

// Level 0 of a group, of the values that tiles have written.
void activateValues(const StoreGroup& group, const Elements& x, int64_t pitch, const Elements& to, const Panel& panels,
                    int64_t pixels) {
  const auto activate = OCTCONV_PICK(activatePixels);
  const Activation& a = group.activation;
  const int64_t toPitch = group.pitches[0];
  const float *scale = group.scale ? group.scale + panels.begin : nullptr,
              *shift = group.shift ? group.shift + panels.begin : nullptr;
  if (!a.function) return activate({x, pitch, to, toPitch, scale, shift, a.least, a.most}, pixels, panels.channels);
  // The function takes f32, some channels of some pixels at a time.
  constexpr int64_t most = 64, together = 16;
  float some[together * most];
  for (int64_t c = 0; c < panels.channels; c += most)
    for (int64_t p = 0; p < pixels; p += together) {
      const int64_t channels = std::min(most, panels.channels - c), count = std::min(together, pixels - p);
      const Elements between{some, DType::f32};
      activate(
          {from(x, p * pitch + c), pitch, between, channels, scale ? scale + c : nullptr, shift ? shift + c : nullptr},
          count, channels);
      OCTCONV_PICK(apply)(a.function->op, a.slope, some, some, count * channels);
      activate({between, channels, from(to, p * toPitch + c), toPitch, nullptr, nullptr, a.least, a.most}, count,
               channels);
    }
}

// What is made of the values that tiles have just stored.
void runStores(const BranchPlan& b, const Block& block, const Run& run, char* memory) {
  const Panel panels = channelsOf(b, block);
  const Shape& y = b.main.grid;
  const auto at = [&](const StoreGroup& group, int k) { return levelAt(b, group, k, block, run, memory); };
  const auto elements = [&](const StoreGroup& group, int64_t plane, int64_t pixel) {
    const Destination level = at(group, 0);
    return from(elementsOf(level.first + plane * level.planeStep, group.type), pixel * group.pitches[0] + panels.begin);
  };
  const StoreGroup& written = b.stores[0];
  const Stretch stretch = stretchesOf(y, block);
  for (const StoreGroup& group : b.stores) {
    if (&group != &written)
      for (int64_t i = 0; i < stretch.count; i++)
        activateValues(group, elements(written, i, 0), written.pitches[0], elements(group, i, 0), panels,
                       stretch.pixels);
    for (int k = b.written + 1; k < group.levels; k++)
      halveLevel(b, group, k, block, panels, at(group, k - 1), at(group, k));
    if (!group.mean) continue;
    for (int64_t plane = block.plane; plane < block.planeEnd; plane++) {
      auto* sums =
          reinterpret_cast<double*>(run.shared + group.rowSums) + (plane * y.h + block.row) * y.c + panels.begin;
      for (int64_t row = block.row; row < block.rowEnd; row++, sums += y.c) {
        std::fill_n(sums, panels.channels, 0.);
        addPixels(elements(group, plane - block.plane, (row - block.row) * y.w), group.pitches[0], y.w, panels.channels,
                  sums);
      }
    }
  }
}

// The means of an image, of its sums by row: they are the same for any cut into blocks.
void runMeans(const BranchPlan& b, int64_t image, const Run& run) {
  const Shape& y = b.main.grid;
  const int64_t rows = y.t * y.h;
  constexpr int64_t most = 64;
  for (const StoreGroup& group : b.stores) {
    if (!group.mean) continue;
    const auto* sums = reinterpret_cast<const double*>(run.shared + group.rowSums) + image * rows * y.c;
    float* means = run.out<float>(*group.mean) + image * group.meanPitch;
    for (int64_t first = 0; first < y.c; first += most) {
      const int64_t count = std::min(most, y.c - first);
      double all[most] = {};
      for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < count; c++) all[c] += sums[row * y.c + first + c];
      for (int64_t c = 0; c < count; c++)
        means[first + c] = static_cast<float>(all[c] / static_cast<double>(rows * y.w));
    }
  }
}

// --- Tasks ------------------------------------------------------------------------------------------------------

// A block's values of y, of an input times a gate.
void runGate(const Node& node, const BranchPlan& b, const Block& block, const Run& run, char* memory,
             const Destination& out) {
  const auto activate = OCTCONV_PICK(activatePixels);
  const auto convert = OCTCONV_PICK(convertElements);
  const auto [input, gates] = *b.spec.gated;
  const StoreGroup& store = b.stores[0];
  const Shape& y = b.main.grid;
  const int64_t image = y.t * y.h, toPitch = store.pitches[0];
  const auto pixelOf = [&](size_t i, int64_t pixel) {
    return from(elementsOf(run.inputs[i], node.inputs[i]), pixel * node.inputs[i].pitch());
  };
  auto* gate = reinterpret_cast<float*>(memory);
  const int64_t firstRow = block.plane * y.h + block.row, rowEnd = firstRow + block.rows();
  for (int64_t row = firstRow; row < rowEnd;) {  // image by image
    const int64_t n = row / image, end = std::min(rowEnd, (n + 1) * image);
    convert(pixelOf(gates, n), {gate, DType::f32}, y.c);
    const Elements to = from(elementsOf(out.first, store.type), (row - firstRow) * y.w * toPitch);
    ActivatedPixels by{pixelOf(input, row * y.w), node.inputs[input].pitch(), to, toPitch, gate};
    by.least = store.activation.least, by.most = store.activation.most;
    if (const auto& residual = b.spec.residual)
      by.added = pixelOf(*residual, row * y.w), by.addedPitch = node.inputs[*residual].pitch();
    activate(by, (end - row) * y.w, y.c);
    row = end;
  }
}

size_t gateScratch(const BranchPlan& b) { return static_cast<size_t>(b.main.grid.c) * sizeof(float); }

// How a block's values of y are computed: scratch in bytes, and the work.
struct Algorithm {
  size_t (*scratch)(const BranchPlan& b);
  void (*run)(const Node& node, const BranchPlan& b, const Block& block, const Run& run, char* memory,
              const Destination& out);
};
Algorithm algorithmOf(const Branch& branch) {
  if (branch.gated) return {gateScratch, runGate};
  if (branch.overTime) return {overTimeScratch, runOverTime};
  return branch.winograd ? Algorithm{winogradScratch, runWinograd} : Algorithm{directScratch, runDirect};
}

Block blockAt(const BranchPlan& b, int64_t task) {
  const Shape& y = b.main.grid;
  const int64_t at = task / b.panelGroups, row = at % b.rowBlocks * b.rows, cut = (b.span + b.planes - 1) / b.planes;
  const int64_t span = at / b.rowBlocks / cut * b.span, plane = span + at / b.rowBlocks % cut * b.planes;
  const auto [begin, end] = piece(static_cast<int64_t>(b.packed->panels.size()), b.panelGroups, task % b.panelGroups);
  return {{plane, std::min(plane + b.planes, span + b.span), row, std::min(row + b.rows, y.h)}, begin, end};
}

// The rows of a source that a block's tiles read, which are prepared.
Window preparedOf(const BranchPlan& b, const Node& node, const Sum& sum, const TileSource& source, const Block& block) {
  Window rows = windowOf(source, sum.points, pointsOf(b, sum, block));
  if (!b.spec.overTime) return rows;
  const Range time = timeOf(b, node.in(source.conv.input), block);
  rows.plane = time.begin, rows.planeEnd = time.end;
  return rows;
}

// Lays out the rows that tasks prepare; gives the end.
size_t layOutPrepared(BranchPlan& b, const Node& node, size_t from) {
  Layout layout;
  layout.add(from);
  for (Sum* sum : {&b.main, &b.low})
    for (TileSource& source : sum->sources) {
      if (!source.prepared) continue;
      int64_t rows = 0;
      for (int64_t task = 0; task < b.tasks(); task += b.panelGroups)
        rows = std::max(rows, preparedOf(b, node, *sum, source, blockAt(b, task)).rows());
      Prepared& p = *source.prepared;
      p.copy = layout.add(product(rows, source.shape.w, source.shape.c, sizeOf(b.spec.compute)));
      Shape level = p.padded;
      level.n = level.t = 1, level.h = int64_t{1} << source.conv.pool;
      p.between = layout.add(source.conv.pool ? product(2, level.elements(), sizeOf(b.spec.compute)) : 0);
    }
  return layout.size();
}

void runTask(const Node& node, const BranchPlan& b, int64_t task, const Run& run, char* memory) {
  const Block block = blockAt(b, task);
  for (const Sum* sum : {&b.main, &b.low})
    for (const TileSource& source : sum->sources)
      if (source.prepared)
        prepareRows(source, node, b.spec.compute, preparedOf(b, node, *sum, source, block), run, memory);
  algorithmOf(b.spec).run(node, b, block, run, memory, levelAt(b, b.stores[0], b.written, block, run, memory));
  runStores(b, block, run, memory);
}

// What a branch reads and computes, for its cut into tasks.
struct Cost {
  int64_t inputBytes = 0, weightBytes = 0;  // per output pixel; of all panels
  double flops = 0;
  bool prepares = false;
};

Cost costOf(const BranchPlan& b) {
  const Shape& y = b.main.grid;
  const int64_t bytes = sizeOf(b.spec.compute);
  Cost cost;
  if (b.spec.gated) return {y.c * 4, 0, gateFlops * static_cast<double>(y.elements()), false};
  for (const Sum* sum : {&b.main, &b.low})
    for (const TileSource& s : sum->sources) {
      // Along T each point of the grid is multiplied once per position of its tile.
      const int64_t products = y.c * (s.shape.c / s.conv.groups) * s.conv.taps(),
                    positions = b.spec.overTime ? positionsOf(b.spec) : 1,
                    timeTiles = b.spec.overTime ? y.n * ((y.t + b.spec.winograd - 1) / b.spec.winograd) : 1;
      int64_t inputBytes = s.shape.c * bytes * s.conv.stride.h * s.conv.stride.w;
      // Transformed inputs and sums of Winograd's tiles stay in the cache together.
      if (b.spec.winograd) {
        const int64_t strides = b.spec.overTime ? s.conv.stride.h * s.conv.stride.w : 1,
                      each = s.shape.c * strides * packedInputBytes(b.spec) + y.c * 4;
        inputBytes = positionsOf(b.spec) * each / outputsOf(b.spec);
      }
      cost.inputBytes += inputBytes / (s.conv.upsample ? 4 : 1);
      cost.weightBytes += positions * products * packedInputBytes(b.spec);
      cost.flops += 2. * static_cast<double>(positions * timeTiles * sum->points.pixels() * products);
      cost.prepares = cost.prepares || s.prepared;
    }
  // What tiles have written is read again while it is in the cache.
  const bool again = b.stores.size() > 1 || b.stores[0].levels > b.written + 1 || b.stores[0].mean;
  if (again) cost.inputBytes += y.c * static_cast<int64_t>(bytesOf(b.stores[0].type.dtype));
  return cost;
}

// A block whose convolutions have taps over time covers the same rows of up to so many frames: an input is read once
// for all taps.
constexpr int64_t mostFrames = 8;

// Cuts a branch into blocks of about so many pixels. Row pairs that share a low row or a pooled row stay together, as
// do rows of a tile, or of tiles that share one on the low grid. Blocks are of nearly equal size: one with the last few
// rows would read all weights for them.
void cut(BranchPlan& b, int64_t pixels) {
  const Shape& y = b.main.grid;
  const int64_t o = b.spec.winograd;
  int levels = 1;
  for (const StoreGroup& group : b.stores) levels = std::max(levels, group.levels);
  const int64_t shared = int64_t{1} << std::max(levels - 1, b.low.taps ? 1 : 0);
  const int64_t align = o && !b.spec.overTime ? std::max(shared, b.low.taps ? 2 * o : o) : shared;
  bool mixesTime = false;
  b.spec.eachSource([&](const Source& s) { mixesTime = mixesTime || s.kernel.t > 1; });
  b.span = mixesTime ? y.t : y.n * y.t;
  const int64_t plane = y.h * y.w, frames = std::min(y.t, b.spec.overTime ? o : mostFrames),
                window = mixesTime ? frames * plane : plane,
                count = std::max<int64_t>(1, (window + pixels / 2) / pixels);
  b.planes = mixesTime ? frames : std::clamp<int64_t>(pixels / plane, 1, b.span);
  b.rows = std::min(y.h, ((y.h + count - 1) / count + align - 1) / align * align);
  b.rowBlocks = (y.h + b.rows - 1) / b.rows;
  b.blocks = y.n * y.t / b.span * ((b.span + b.planes - 1) / b.planes) * b.rowBlocks;
}

// How a branch is cut into tasks; by shape and thread count only.
void split(BranchPlan& b, int threads) {
  const int64_t o = b.spec.winograd, pixels = b.main.grid.pixels();
  const Cost cost = costOf(b);
  int64_t wanted = std::max(fewestPixels, (o ? winogradBytes : blockBytes) / std::max<int64_t>(1, cost.inputBytes));
  // Weights that come from memory are read for enough tiles.
  if (o && cost.weightBytes > winogradBytes) wanted = std::max(wanted, fewestTiles * outputsOf(b.spec));
  cut(b, wanted);
  if (threads == 1) return;
  // Every panel group prepares or transforms the inputs again: no more of them than threads.
  const bool again = o || cost.prepares;
  const int64_t most = int64_t{again ? 2 : tasksPerThread} * threads;
  const int64_t useful = std::clamp<int64_t>(static_cast<int64_t>(cost.flops / taskFlops), 1, most);
  const auto groups = [&] {
    const int64_t tasks = again ? std::min<int64_t>(useful, threads) : useful;
    const auto panels = static_cast<int64_t>(b.packed->panels.size());
    return std::clamp<int64_t>((tasks + b.blocks - 1) / b.blocks, 1, std::max<int64_t>(1, panels));
  };
  // More blocks read the weights again, more panel groups the input: the larger stays whole.
  const bool fewWeights = o ? cost.weightBytes < winogradBytes
                            : cost.weightBytes < cost.inputBytes * pixels || groups() * b.blocks < useful;
  if (b.blocks < useful && fewWeights) cut(b, std::max(fewestPixels, std::min(wanted, pixels / useful)));
  b.panelGroups = groups();
}

// --- Making a kernel --------------------------------------------------------------------------------------------

void checkWinogradTypes(const Node& node, const BranchPlan& b) {
  const bool integers = b.spec.compute == Compute::i8;
  int64_t channels[2] = {0, 0};
  // Over time all products are one sum before it is divided.
  b.spec.eachSource([&](const Source& s) {
    channels[s.upsample && !b.spec.overTime] += node.in(s.input).c * (b.spec.overTime ? s.taps() : 1);
  });
  const DType dtype = b.stores[0].type.dtype;
  if ((b.spec.residual && node.inputs.at(*b.spec.residual).dtype != dtype) || (dtype == DType::u8) != integers)
    fail("octConv: winograd of '", node.name, "' wants f32 or bf16, or of i8 u8, for residual and output the same");
  const int64_t sums = std::max(channels[0], channels[1]),
                most = b.spec.overTime ? overTimeProducts : winogradChannels(b.spec.winograd);
  if (integers && sums > most)
    fail("octConv: winograd of '", node.name, "' sums up ", sums, b.spec.overTime ? " products" : " channels",
         " of i8, wanted at most ", most);
}

// Weights that were packed for another node are an error here, not a read out of bounds later.
void checkPacked(const Node& node, const Branch& branch, const PackedBranch& packed, const Shape& y) {
  size_t source = 0;
  std::vector<PackedBranch::Reader> readers;
  branch.eachSource([&](const Source& s) { readers.push_back({node.in(s.input).c / s.groups, s.taps(), s.upsample}); });
  bool fits = packed.compute == branch.compute && packed.winograd == branch.winograd &&
              packed.overTime == branch.overTime && packed.channels == (branch.gated ? 0 : y.c) &&
              packed.groups == branch.groups() && packed.readers == readers &&
              packed.stores.size() == branch.stores.size();
  const auto check = [&](const Activation& a, const PackedBranch::ScaleShift& norm, int64_t channels) {
    fits = fits && norm.channels == (a.batchNorm.empty() ? 0 : channels);
  };
  branch.eachSource([&](const Source& s) {
    if (fits) check(s.prologue, packed.prologues[source++], node.in(s.input).c);
  });
  for (size_t k = 0; fits && k < branch.stores.size(); k++) check(branch.stores[k].activation, packed.stores[k], y.c);
  if (!fits) fail("octConv: the weights given to '", node.name, "' were packed for another layer");
}

// Whether tiles can write P(y): nobody wants y, there is no residual, all windows are whole, and no kernel needs the
// pixels of a row one after the other.
bool canPool(const BranchPlan& b) {
  const StoreGroup& store = b.stores[0];
  const Shape& y = b.main.grid;
  const bool tiles = !b.spec.gated && !b.spec.winograd && b.packed->acrossGroups == 0 && b.spec.compute != Compute::i8;
  return tiles && b.stores.size() == 1 && store.levels > 1 && !store.outputs[0] && !store.mean && !b.spec.residual &&
         store.type.dtype == operandType(b.spec.compute) && y.h % 2 == 0 && y.w % 2 == 0;
}

BranchPlan planOf(const Node& node, const Branch& branch, const PackedBranch& packed, int threads) {
  const Shape y = shapeOf(branch, node);
  checkPacked(node, branch, packed, y);
  BranchPlan b{branch, &packed, {}, {}, {}};
  b.stores = groupStores(node, b, y);
  if (branch.winograd) branch.overTime ? checkOverTime(branch) : checkWinograd(branch), checkWinogradTypes(node, b);
  b.main = sumOf(node, b, y, false);
  b.low = sumOf(node, b, y, true);
  b.written = canPool(b) ? 1 : 0;
  split(b, threads);
  return b;
}

std::string describe(const BranchPlan& b) {
  if (b.spec.gated) return "gate " + std::to_string(b.blocks) + " blocks";
  const int64_t vectors = b.packed->panels[0].vectors;
  std::ostringstream text;
  if (b.spec.overTime)
    text << "winograd " << b.spec.winograd << " over time, ";
  else if (b.spec.winograd)
    text << "winograd " << b.spec.winograd << 'x' << b.spec.winograd << ", ";
  const PanelTiles tiles = tilesOf(b, b.packed->panels[0]);
  text << (b.packed->depthwise      ? "depthwise "
           : b.packed->taken > 1    ? "groups of words "
           : b.packed->acrossGroups ? "groups "
           : b.written == 1         ? "pooled tile "
                                    : "tile ")
       << tiles.most * tiles.pixels << 'x'
       << (b.packed->acrossGroups ? b.packed->acrossGroups : vectors * b.packed->set->lanes) << ' ' << b.blocks
       << " blocks x " << b.panelGroups;
  return text.str();
}

void runStep(const std::vector<BranchPlan>& branches, const Node& node, Run& run) {
  int64_t tasks = 0;
  for (const BranchPlan& b : branches) tasks += b.tasks();
  // Those of the low branch come last, whoever is free: both branches from both ends cost Oct-ResNet-50 2 %.
  run.parallel(tasks, branches[0].tasks(), [&](int64_t task, char* scratch) {
    for (const BranchPlan& b : branches) {
      if (task < b.tasks()) return runTask(node, b, task, run, scratch);
      task -= b.tasks();
    }
  });
  for (const BranchPlan& b : branches)
    if (std::any_of(b.stores.begin(), b.stores.end(), [](const StoreGroup& group) { return group.mean; }))
      run.parallel(b.main.grid.n, [&](int64_t image, char*) { runMeans(b, image, run); });
}

Kernel make(const Node& node, int threads) {
  const std::vector<Branch> specs = branchesOf(node.attrs);
  std::vector<BranchPlan> branches;
  Layout shared;
  size_t threadBytes = 0;
  std::string algorithm;
  for (size_t i = 0; i < specs.size(); i++) {
    BranchPlan b = planOf(node, specs[i], node.weights<PackedBranch>(i), threads);
    threadBytes =
        std::max(threadBytes, layOutPrepared(b, node, layOutStores(b, algorithmOf(b.spec).scratch(b), shared)));
    algorithm += (i ? ", " : "") + describe(b);
    branches.push_back(std::move(b));
  }
  return {[branches = std::move(branches), node](Run& run) { runStep(branches, node, run); }, shared.size(),
          threadBytes, algorithm};
}

const Registered<Kernels<Cpu>> kernels{"octConv",
                                       {make, {DType::f32, DType::bf16, DType::u8}, packBranch, formatOf, true}};

}  // namespace

Panel channelsOf(const BranchPlan& b, const Block& block) {
  Panel all{};
  all.channels = b.main.grid.c;
  return b.spec.gated ? all : b.packed->joined(block.panelBegin, block.panelEnd);
}

Epilogue epilogueOf(const Node& node, const BranchPlan& b, const Run& run, const Panel& panel, int64_t pixel,
                    char* out) {
  const auto at = [&](void* data, const TensorType& type, int64_t pixel) {
    return from(elementsOf(data, type), pixel * type.pitch() + panel.begin);
  };
  const StoreGroup& store = b.stores[0];
  const Elements y = at(out, store.type, 0);
  const TensorType* type = b.spec.residual ? &node.inputs[*b.spec.residual] : nullptr;
  const Elements residual = type ? at(run.inputs[*b.spec.residual], *type, pixel) : Elements{nullptr, y.dtype};
  const bool bytes = y.dtype == DType::u8;
  const auto zero = static_cast<float>(y.zero);
  const float steps = 1 / y.scale, residualSteps = residual.scale * steps,
              least = store.activation.least * steps + zero, most = store.activation.most * steps + zero;
  return {b.spec.compute == Compute::i8 ? b.packed->floats(panel.scale) : nullptr,
          b.packed->floats(panel.bias),
          steps,
          zero - static_cast<float>(residual.zero) * residualSteps,
          residual,
          residualSteps,
          y,
          store.pitches[b.written],
          type ? type->pitch() : 0,
          panel.channels,
          bytes ? std::clamp(least, 0.f, 255.f) : least,
          bytes ? std::clamp(most, 0.f, 255.f) : most};
}

}  // namespace octconv
