#include "tile.h"

#include "levels.h"
#include "vec.h"

OCTCONV_DECLARE(extern const TileSet tileSet)

namespace octconv::OCTCONV_LEVEL {

// Bias or start, then the sum in `acc`, then residual, clamp and store.
template <int M, int V>
OCTCONV_INLINE void begin(const Tile& t, Vec (&acc)[M][V]) {
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      acc[m][v] = load(t.bias + v * lanes);
      if (t.start) acc[m][v] += load(t.start[m] + v * lanes);
    }
}

template <int M, int V>
OCTCONV_INLINE void finish(const Tile& t, Vec (&acc)[M][V]) {
  const Vec low = splat(t.low), high = splat(t.high);
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      const ptrdiff_t at = m * t.pitch + v * lanes, left = t.channels - v * lanes;
      if (left >= lanes) {
        if (t.residual) acc[m][v] += load(t.residual + at);
        store(t.out + at, clamp(acc[m][v], low, high));
      } else if (left > 0) {
        const int count = static_cast<int>(left);
        if (t.residual) acc[m][v] += load(t.residual + at, count);
        store(t.out + at, clamp(acc[m][v], low, high), count);
      }
    }
}

template <int M, int V>
static void tile(const Tile& t) {
  Vec acc[M][V];
  begin<M, V>(t, acc);
  const float* w = t.weights;
  const float* const* rows = t.rows;
  for (const Segment* s = t.segments; s < t.segments + t.segmentCount; s++) {
    for (int64_t tap = 0; tap < s->taps; tap++, rows += t.rowStride) {
      const float* a[M];
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) a[m] = rows[m] + s->offset + s->length;
      for (ptrdiff_t k = -s->length; k < 0; k++, w += V * lanes) {
        // 32 steps ahead: the 7x7 layers, whose weights come from memory, gain 10 %, the others nothing.
        for (int v = 0; v < V * lanes; v += 16) __builtin_prefetch(w + 32 * V * lanes + v);
        Vec b[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) b[v] = load(w + v * lanes);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
          const Vec x = splat(a[m][k]);
#pragma GCC unroll 4
          for (int v = 0; v < V; v++) acc[m][v] += x * b[v];
        }
      }
    }
  }
  finish<M, V>(t, acc);
}

// Every channel is its own group: input vectors instead of splats.
template <int M>
static void depthwise(const Tile& t) {
  Vec acc[M][1];
  begin<M, 1>(t, acc);
  const float* w = t.weights;
  const float* const* rows = t.rows;
  const bool whole = t.channels >= lanes;
  for (const Segment* s = t.segments; s < t.segments + t.segmentCount; s++)
    for (int64_t tap = 0; tap < s->taps; tap++, rows += t.rowStride, w += lanes)
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
        const float* a = rows[m] + s->offset;
        acc[m][0] += (whole ? load(a) : load(a, static_cast<int>(t.channels))) * load(w);
      }
  finish<M, 1>(t, acc);
}

// 6 x 2 vectors (12 sums, 2 weights, 1 input of 16 registers) reach 97 % of the measured FMA peak with AVX2; 4 x 3 the
// same with g++ 12 but 43 % with clang 19, which moves sums around: it serves only an odd vector of channels.
// AVX-512 has 32 registers: 6 x 4 and 8 x 3 use 28.
#if defined(__AVX512F__) || defined(OCTCONV_EMULATE_AVX512)
#define OCTCONV_MAX_VECTORS 4
#define OCTCONV_MAX_PIXELS {0, 8, 8, 8, 6}
#else
#define OCTCONV_MAX_VECTORS 3
#define OCTCONV_MAX_PIXELS {0, 8, 6, 4, 0}
#endif

#define TILES_4(V) tile<1, V>, tile<2, V>, tile<3, V>, tile<4, V>
#define TILES_6(V) TILES_4(V), tile<5, V>, tile<6, V>
#define TILES_8(V) TILES_6(V), tile<7, V>, tile<8, V>

extern const TileSet tileSet;
const TileSet tileSet = {
    lanes,
    OCTCONV_MAX_VECTORS,
    OCTCONV_MAX_PIXELS,
#if OCTCONV_MAX_VECTORS == 4
    {{}, {nullptr, TILES_8(1)}, {nullptr, TILES_8(2)}, {nullptr, TILES_8(3)}, {nullptr, TILES_6(4)}},
#else
    {{}, {nullptr, TILES_8(1)}, {nullptr, TILES_6(2)}, {nullptr, TILES_4(3)}, {}},
#endif
    {nullptr, depthwise<1>, depthwise<2>, depthwise<3>, depthwise<4>},
};

}  // namespace octconv::OCTCONV_LEVEL
