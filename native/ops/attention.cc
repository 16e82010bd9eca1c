// attention: softmax(scale q k^T) v, as PyTorch's scaled_dot_product_attention with one head. q [N,T,H,W,D],
// k [N,T',H',W',D], v [N,T',H',W',E] -> [N,T,H,W,E]: each position of q (a query) attends to all positions of k (keys)
// of the same n. f32, f16, bf16 or u8, each input and the output of its own type. Computed in f32; NaN stays NaN, and
// scores of +inf, or of -inf for every key, give NaN as in softmax.
//
// The matrix of scores, queries x keys, is never in memory (FlashAttention, arXiv 2205.14135): a task has a block of
// queries and goes over blocks of keys. The scores of two blocks are products of the register tiles; with the largest
// score of each query so far they become weights, and the tiles add the weighted rows of v to the sums of the queries.
// Where the largest score grows, the sums so far are scaled down. In the end the sums are divided by those of the
// weights. k and v are packed once for each n, the scale goes into k.
#include "../cpu/exponential.h"
#include "../cpu/levels.h"

namespace octconv {

// A block of queries beside a block of keys.
struct AttentionBlock {
  int64_t queries, keys;
  float* scores;  // [query][key]; become the weights
  ptrdiff_t scorePitch;
  float* largest;  // of each query's scores so far
  float* totals;   // of each query's weights
  float* sums;     // [query][channel] of weights times v, or null at the first block of keys
  ptrdiff_t sumPitch;
};

}  // namespace octconv

OCTCONV_DECLARE(void weighScores(const AttentionBlock& block))

namespace octconv::OCTCONV_LEVEL {

void weighScores(const AttentionBlock& b) {
  constexpr float infinity = __builtin_inff();
  for (int64_t i = 0; i < b.queries; i++) {
    float* const scores = b.scores + i * b.scorePitch;
    int64_t keys = b.keys;
    while (keys % lanes) scores[keys++] = -infinity;
    Vec most = load(scores);
    for (int64_t j = lanes; j < keys; j += lanes) {
      const Vec x = load(scores + j);
      most = x > most ? x : most;
    }
    const float before = b.largest[i];
    float largest = before;
    for (int lane = 0; lane < lanes; lane++) largest = most[lane] > largest ? most[lane] : largest;
    // Of scores that are all -inf so far the weights are 0.
    const float zero = largest == -infinity ? 0 : largest;
    Vec sum{};
    for (int64_t j = 0; j < keys; j += lanes) {
      const Vec weight = exponential(load(scores + j) - splat(zero));
      store(scores + j, weight);
      sum += weight;
    }
    float total = 0;
    for (int lane = 0; lane < lanes; lane++) total += sum[lane];
    b.largest[i] = largest;
    if (largest == before) {
      b.totals[i] += total;
      continue;
    }
    const float factor = exponential(splat(before - largest))[0];
    b.totals[i] = b.totals[i] * factor + total;
    if (!b.sums) continue;
    for (ptrdiff_t e = 0; e < b.sumPitch; e += lanes) {
      float* const at = b.sums + i * b.sumPitch + e;
      store(at, load(at) * splat(factor));
    }
  }
}

}  // namespace octconv::OCTCONV_LEVEL

#if OCTCONV_MAIN
#include <cmath>

#include "../cpu/floats.h"
#include "octconv/cpu.h"

namespace octconv {
namespace {

int64_t positions(const Shape& s) { return s.t * s.h * s.w; }

float scaleOf(const Node& node) {
  const double scale = node.attrs["scale"].number();
  if (!std::isfinite(scale)) fail("attention: scale ", scale, ", wanted a finite number");
  return static_cast<float>(scale);
}

void check(const Node& node) {
  node.want(3, 1);
  scaleOf(node);
  const Shape q = node.in(0), k = node.in(1), v = node.in(2), y = node.out(0);
  const Shape wantedK{q.n, k.t, k.h, k.w, q.c}, wantedV{q.n, k.t, k.h, k.w, v.c}, wantedY{q.n, q.t, q.h, q.w, v.c};
  if (k != wantedK || v != wantedV || y != wantedY)
    fail("attention: q ", q, ", k ", k, " and v ", v, ", output ", y,
         ", wanted [N,T,H,W,D], [N,T',H',W',D] and [N,T',H',W',E] to [N,T,H,W,E]");
}

Kernel slow(const Node& node, int) {
  const Shape q = node.in(0), k = node.in(1), v = node.in(2);
  return {[=, scale = static_cast<double>(scaleOf(node))](Run& run) {
    const auto at = [&](size_t input, int64_t i) {
      return static_cast<double>(valueAt(run.inputs[input], node.inputs[input], i));
    };
    std::vector<double> weights(static_cast<size_t>(positions(k)));
    for (int64_t query = 0; query < q.pixels(); query++) {
      const int64_t first = query / positions(q) * positions(k);  // key of its n
      for (int64_t key = 0; key < positions(k); key++) {
        double score = 0;
        for (int64_t d = 0; d < q.c; d++) score += at(0, query * q.c + d) * at(1, (first + key) * q.c + d);
        weights[key] = score * scale;
      }
      const double largest = *std::max_element(weights.begin(), weights.end());
      double total = 0;
      for (double& weight : weights) total += weight = std::exp(weight - largest);
      for (int64_t e = 0; e < v.c; e++) {
        double sum = 0;
        for (int64_t key = 0; key < positions(k); key++) sum += weights[key] * at(2, (first + key) * v.c + e);
        setValue(run.outputs[0], node.outputs[0], query * v.c + e, static_cast<float>(sum / total));
      }
    }
  }};
}

// A matrix [inner][columns] as the tiles read it: panels of some vectors of columns, [inner][column] each, one behind
// the other.
struct Panels {
  int64_t inner, columns, lanes, most;  // most: vectors of a panel; the last one may have fewer
  Panels(int64_t inner, int64_t columns, const TileSet& set)
      : inner(inner), columns(columns), lanes(set.lanes), most(set.shape.bestVectors) {}
  int64_t width() const { return (columns + lanes - 1) / lanes * lanes; }  // of all
  int64_t count() const { return (width() + lanes * most - 1) / (lanes * most); }
  int64_t column(int64_t panel) const { return panel * lanes * most; }  // the first of a panel
  int64_t vectors(int64_t panel) const { return std::min(most, (width() - column(panel)) / lanes); }
  size_t bytes() const { return static_cast<size_t>(product(inner, width(), sizeof(float))); }
  // Where an element lies, in floats.
  int64_t at(int64_t row, int64_t column) const {
    const int64_t panel = column / (lanes * most);
    return this->column(panel) * inner + row * vectors(panel) * lanes + column - this->column(panel);
  }
};

// [queries][columns of a panel] = x [queries][inner] times rows of a panel, added to `start` unless that is null.
void multiplyPanel(const TileSet& set, const Panels& panels, int64_t panel, const float* packed, int64_t firstRow,
                   int64_t rows, const char* const* x, int64_t queries, const char* const* start, float* out,
                   int64_t pitch) {
  const TapRun taps{1, rows * static_cast<int64_t>(sizeof(float)), 0};
  Tile tile{};
  tile.indirection = x;
  tile.tapStride = queries;
  tile.tapRuns = &taps;
  tile.tapRunCount = 1;
  tile.weights = reinterpret_cast<const char*>(packed + panels.at(firstRow, panels.column(panel)));
  tile.start = start;
  tile.raw = true;
  tile.out = {out, DType::f32};
  tile.pitch = pitch;
  tile.channels = panels.vectors(panel) * panels.lanes;
  Panel shape{};
  shape.vectors = panels.vectors(panel);
  runTiles(set, tile, shape, tilesOf(set, shape), queries);
}

// f32 on one AVX2 thread: 3,136 queries, 784 keys and 256 channels take 28.5 ms (24.2 at the peak of multiply-adds),
// 784, 196 and 512 take 3.6 ms (3.0). Of these the tiles are 87 to 90 %, the weights 3 to 5 %, packing 1 to 4 %. Blocks
// of 48 queries: 3 to 6 % more; of 128 keys: 5 % more, 512: 1 %; scores as sums of two halves of 512 channels: the
// same.
constexpr int64_t queriesAtOnce = 96, keysAtOnce = 256;  // keysAtOnce: whole panels at every level

Kernel fast(const Node& node, int) {
  const Shape q = node.in(0), k = node.in(1), v = node.in(2);
  const int64_t queries = positions(q), keys = positions(k), blocks = (queries + queriesAtOnce - 1) / queriesAtOnce;
  const TileSet& set = OCTCONV_PICK(tileSets)->f32;
  const Panels kPanels(q.c, keys, set), vPanels(keys, v.c, set);
  const int64_t scorePitch = std::min(keysAtOnce, kPanels.width());
  Layout shared;  // of one n
  const size_t kAt = shared.add(kPanels.bytes()), vAt = shared.add(vPanels.bytes());
  Layout scratch;
  const auto floats = [&](int64_t rows, int64_t columns) { return scratch.add(product(rows, columns, 4)); };
  const size_t qAt = floats(node.inputs[0].dtype == DType::f32 ? 0 : queriesAtOnce, q.c),
               scoresAt = floats(queriesAtOnce, scorePitch), sumsAt = floats(queriesAtOnce, vPanels.width()),
               rowAt = floats(1, std::max(q.c, v.c)), largestAt = floats(1, queriesAtOnce),
               totalsAt = floats(1, queriesAtOnce), pointersAt = scratch.add(3 * queriesAtOnce * sizeof(char*));

  const Floats qs(node.inputs[0]), ks(node.inputs[1]), vs(node.inputs[2]), ys(node.outputs[0]);
  const auto pack = [=, scale = scaleOf(node)](const Run& run, int64_t n, int64_t key, char* memory) {
    auto* const row = reinterpret_cast<float*>(memory + rowAt);
    auto* const kPacked = reinterpret_cast<float*>(run.shared + kAt);
    auto* const vPacked = reinterpret_cast<float*>(run.shared + vAt);
    const float* from = ks.read(run.inputs[1], (n * keys + key) * q.c, q.c, row);
    const int64_t step = kPanels.at(1, key) - kPanels.at(0, key);
    float* to = kPacked + kPanels.at(0, key);
    for (int64_t d = 0; d < q.c; d++) to[d * step] = from[d] * scale;
    from = vs.read(run.inputs[2], (n * keys + key) * v.c, v.c, row);
    for (int64_t panel = 0; panel < vPanels.count(); panel++) {
      const int64_t first = vPanels.column(panel), width = vPanels.vectors(panel) * vPanels.lanes,
                    count = std::min(width, v.c - first);
      to = vPacked + vPanels.at(key, first);
      std::fill(std::copy_n(from + first, count, to), to + width, 0.0f);
    }
  };
  const auto attend = [=, weigh = OCTCONV_PICK(weighScores)](const Run& run, int64_t n, int64_t block, char* memory) {
    const int64_t first = block * queriesAtOnce, count = std::min(queriesAtOnce, queries - first);
    const auto at = [&](size_t offset) { return reinterpret_cast<float*>(memory + offset); };
    float *const scores = at(scoresAt), *const sums = at(sumsAt), *const totals = at(totalsAt);
    const auto* const kPacked = reinterpret_cast<const float*>(run.shared + kAt);
    const auto* const vPacked = reinterpret_cast<const float*>(run.shared + vAt);
    auto** const qRows = reinterpret_cast<const char**>(memory + pointersAt);
    auto **const weightRows = qRows + queriesAtOnce, **const sumRows = weightRows + queriesAtOnce;
    for (int64_t i = 0; i < count; i++) {
      const float* row = qs.read(run.inputs[0], (n * queries + first + i) * q.c, q.c, at(qAt) + i * q.c);
      qRows[i] = reinterpret_cast<const char*>(row);
      weightRows[i] = reinterpret_cast<const char*>(scores + i * scorePitch);
      at(largestAt)[i] = -INFINITY;
      totals[i] = 0;
    }
    for (int64_t key = 0; key < keys; key += keysAtOnce) {
      const int64_t some = std::min(keysAtOnce, keys - key), width = kPanels.lanes * kPanels.most;
      for (int64_t column = 0; column < some; column += width)
        multiplyPanel(set, kPanels, (key + column) / width, kPacked, 0, q.c, qRows, count, nullptr, scores + column,
                      scorePitch);
      float* const before = key == 0 ? nullptr : sums;
      weigh({count, some, scores, scorePitch, at(largestAt), totals, before, vPanels.width()});
      for (int64_t panel = 0; panel < vPanels.count(); panel++) {
        float* const to = sums + vPanels.column(panel);
        for (int64_t i = 0; i < count; i++) sumRows[i] = reinterpret_cast<const char*>(to + i * vPanels.width());
        multiplyPanel(set, vPanels, panel, vPacked, key, some, weightRows, count, before ? sumRows : nullptr, to,
                      vPanels.width());
      }
    }
    for (int64_t i = 0; i < count; i++) {
      const int64_t to = (n * queries + first + i) * v.c;
      float* const y = ys.target(run.outputs[0], to, at(rowAt));
      const float one = 1 / totals[i];
      for (int64_t e = 0; e < v.c; e++) y[e] = sums[i * vPanels.width() + e] * one;
      ys.write(run.outputs[0], to, v.c, y);
    }
  };
  return {[=](Run& run) {
            const int64_t parts = pieces(keys, 16);
            for (int64_t n = 0; n < q.n; n++) {
              run.parallel(parts, [&](int64_t task, char* memory) {
                const auto [begin, end] = piece(keys, parts, task);
                for (int64_t key = begin; key < end; key++) pack(run, n, key, memory);
              });
              run.parallel(blocks, [&](int64_t task, char* memory) { attend(run, n, task, memory); });
            }
          },
          shared.size(), scratch.size()};
}

const Registered<Contract> contract{"attention", {check, false, true}};
const Registered<Kernels<Reference>> onReference{"attention", {slow, anyElements}};
const Registered<Kernels<Cpu>> onCpu{"attention", {fast, anyFloats}};

}  // namespace
}  // namespace octconv
#endif
