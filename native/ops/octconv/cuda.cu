// octConv on tensor cores: each block computes a tile of one branch, 128 pixels x 32 or 64 channels, as one product
// over all sources, taps and input channels.
//
// Polyphase rows: where a product is upsampled or a store is pooled, the rows of a tile are [phase][low pixel], phase =
// (row parity, column parity). The four pixels of a low pixel are then the same element of four accumulators of one
// thread: the low product is their start value, P of the result is their mean.
//
// High and low branch are blocks of one launch; no block waits for another. The input channels of a tap come in chunks
// of 64 bytes, which are copied three steps ahead.
#include "../../cuda/functions.h"
#include "../../cuda/items.h"
#include "cuda.h"

namespace octconv::cuda {
namespace {

// --- Types -----------------------------------------------------------------------------------------------------------

// What is multiplied. A chunk is two products of 32 bytes a row.
struct Bf16 {
  static constexpr int bytes = 2;
  static OCTCONV_DEVICE void round(uint32_t (&)[4]) {}
  static OCTCONV_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiplyBf16(d, a, b);
  }
};
struct Tf32 {
  static constexpr int bytes = 4;
  static OCTCONV_DEVICE void round(uint32_t (&a)[4]) {
    for (uint32_t& x : a) x = roundToTf32(x);
  }
  static OCTCONV_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiplyTf32(d, a, b);
  }
};

OCTCONV_DEVICE float normalized(const ActivationArgs& a, float x, int channel) {
  return a.scale ? a.scale[channel] * x + a.shift[channel] : x;
}
OCTCONV_DEVICE float activated(const ActivationArgs& a, float x, int channel) {
  return clamp(normalized(a, x, channel), a.least, a.most);
}
// Of a store, which may have a function too.
OCTCONV_DEVICE float stored(const ActivationArgs& a, float x, int channel) {
  x = normalized(a, x, channel);
  if (a.function >= 0) x = valueOf(static_cast<Unary>(a.function), a.slope, x);
  return clamp(x, a.least, a.most);
}

// --- Where rows lie ----------------------------------------------------------------------------------------------

// The low pixel of row `low` of 32 of a tile whose rows are phases.
OCTCONV_DEVICE Pixel lowPixel(const BranchArgs& branch, int rowTile, int low) {
  return pixelAt(rowTile * 32u + low, branch.n, {branch.size.t, (branch.size.h + 1) / 2, (branch.size.w + 1) / 2});
}

// The output pixel of row `group` * 32 + `low` of a tile; with phases that of the low pixel in phase `group`.
template <bool phased>
OCTCONV_DEVICE Pixel outputPixel(const BranchArgs& branch, int rowTile, int group, int low) {
  if constexpr (!phased) {
    return pixelAt(static_cast<unsigned>(rowTile) * tileRows + group * 32 + low, branch.n, branch.size);
  } else {
    Pixel p = lowPixel(branch, rowTile, low);
    p.y = p.y * 2 + group / 2, p.x = p.x * 2 + group % 2;
    if (p.y >= branch.size.h || p.x >= branch.size.w) p.frame = -1;
    return p;
  }
}

// The pixel of a source of extent `size`, after pooling, that a tap of the window at `p` reads; `frames` is T of `p`.
OCTCONV_DEVICE Pixel tapPixel(const SourceArgs& s, const Extent& size, Pixel p, int frames, int kt, int ky, int kx) {
  if (p.frame < 0) return p;
  if (frames > 1 || size.t > 1) {
    const int n = p.frame / frames, t = (p.frame - n * frames) * s.stride.t - s.padding.t + kt * s.dilation.t;
    p.frame = t >= 0 && t < size.t ? n * size.t + t : -1;
  } else if (kt * s.dilation.t != s.padding.t) {
    p.frame = -1;
  }
  p.y = p.y * s.stride.h - s.padding.h + ky * s.dilation.h;
  p.x = p.x * s.stride.w - s.padding.w + kx * s.dilation.w;
  if (p.y < 0 || p.y >= size.h || p.x < 0 || p.x >= size.w) p.frame = -1;
  return p;
}

// P^pool(clamp(batchNorm(x))) at a pixel of it, P at most twice; rounded as what is multiplied after each. One value is
// the mean of one.
OCTCONV_DEVICE float preparedAt(const char* arena, const SourceArgs& s, const Pixel& p, int channel, bool narrow) {
  const Extent& size = s.x.size;
  const int outer = s.pool == 2 ? 2 : 1, inner = s.pool > 0 ? 2 : 1;
  const int h = (size.h + inner - 1) / inner, w = (size.w + inner - 1) / inner;
  float sum = 0, count = 0;
#pragma unroll 1
  for (int yo = p.y * outer; yo < p.y * outer + outer && yo < h; yo++)
#pragma unroll 1
    for (int xo = p.x * outer; xo < p.x * outer + outer && xo < w; xo++, count++) {
      float innerSum = 0, innerCount = 0;
#pragma unroll 1
      for (int y = yo * inner; y < yo * inner + inner && y < size.h; y++)
#pragma unroll 1
        for (int x = xo * inner; x < xo * inner + inner && x < size.w; x++, innerCount++) {
          const float element = elementOf(arena, s.x, elementAt(s.x, {p.frame, y, x}, channel));
          innerSum += roundedTo(narrow, activated(s.prologue, element, channel));
        }
      sum += roundedTo(narrow, innerSum / innerCount);
    }
  return roundedTo(narrow, sum / count);
}

OCTCONV_DEVICE Extent pooledSize(const SourceArgs& s) {
  Extent size = s.x.size;
  for (int i = 0; i < s.pool; i++) size.h = (size.h + 1) / 2, size.w = (size.w + 1) / 2;
  return size;
}

// --- The main loop ---------------------------------------------------------------------------------------------------

// The steps of a tile in order: sources, their taps, their chunks.
struct Position {
  int source = 0, kt = 0, ky = 0, kx = 0, chunk = 0;

  OCTCONV_DEVICE void advance(const BranchArgs& branch) {
    const SourceArgs& s = branch.source[source];
    if (++chunk < s.chunks) return;
    chunk = 0;
    if (++kx < s.kernel.w) return;
    kx = 0;
    if (++ky < s.kernel.h) return;
    ky = 0;
    if (++kt < s.kernel.t) return;
    kt = 0;
    source++;
  }
};

OCTCONV_DEVICE int stepsOf(const SourceArgs& s) { return s.kernel.t * s.kernel.h * s.kernel.w * s.chunks; }

// Brings the inputs of a step into shared memory: a thread copies piece thread % 4 of rows thread / 4 + 32 i.
template <class Type, bool phased>
struct Rows {
  const BranchArgs& branch;
  const char* const arena;
  const int rowTile, piece = threadIndex() % 4, low = threadIndex() / 4;
  int frames[4];        // of its rows' output pixels, see Pixel
  uint32_t places[4];   // y * 2^16 + x
  const char* from[4];  // what the tap in hand reads; null: zeros

  OCTCONV_DEVICE Rows(const BranchArgs& branch, const char* arena, int rowTile)
      : branch(branch), arena(arena), rowTile(rowTile) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const Pixel p = outputPixel<phased>(branch, rowTile, i, low);
      frames[i] = p.frame, places[i] = static_cast<uint32_t>(p.y) << 16 | static_cast<uint32_t>(p.x);
    }
  }

  OCTCONV_DEVICE void load(const Position& at, char* slot) {
    const SourceArgs& s = branch.source[at.source];
    if (!s.direct) return prepare(s, at, slot);
    const int channel = (at.chunk * 4 + piece) * (16 / Type::bytes);
    if (at.chunk == 0) findTaps(s, at);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (phased && s.upsample && i > 0) break;
      const bool valid = from[i] && channel < s.x.channels;  // what lies behind them is another value's
      copy16(slot + swizzled(i * 32 + low, piece), valid ? from[i] + at.chunk * chunkBytes : arena, valid);
    }
  }

 private:
  OCTCONV_DEVICE void findTaps(const SourceArgs& s, const Position& at) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (phased && s.upsample && i > 0) break;
      const Pixel output = phased && s.upsample ? lowPixel(branch, rowTile, low)
                                                : Pixel{frames[i], static_cast<int>(places[i] >> 16),
                                                        static_cast<int>(places[i] & 0xffff)};
      const Pixel tap = tapPixel(s, s.x.size, output, branch.size.t, at.kt, at.ky, at.kx);
      from[i] = tap.frame < 0 ? nullptr : arena + s.x.at + elementAt(s.x, tap, 0) * Type::bytes + piece * 16;
    }
  }

  // The slow way, element by element.
  OCTCONV_DEVICE void prepare(const SourceArgs& s, const Position& at, char* slot) const {
    const Extent size = pooledSize(s);
    const int groups = phased && s.upsample ? 1 : 4, elements = 16 / Type::bytes;
#pragma unroll 1
    for (int i = 0; i < groups; i++) {
      const Pixel output =
          phased && s.upsample ? lowPixel(branch, rowTile, low) : outputPixel<phased>(branch, rowTile, i, low);
      const Pixel tap = tapPixel(s, size, output, branch.size.t, at.kt, at.ky, at.kx);
      char* const to = slot + swizzled(i * 32 + low, piece);
#pragma unroll 1
      for (int e = 0; e < elements; e++) {
        const int channel = (at.chunk * 4 + piece) * elements + e;
        const bool valid = tap.frame >= 0 && channel < s.x.channels;
        const float x = valid ? preparedAt(arena, s, tap, channel, Type::bytes == 2) : 0;
        if constexpr (Type::bytes == 2) {
          reinterpret_cast<uint16_t*>(to)[e] = static_cast<uint16_t>(packBf16(x, 0));
        } else {
          reinterpret_cast<float*>(to)[e] = x;
        }
      }
    }
  }
};

template <int columns>
OCTCONV_DEVICE void loadWeights(const char* weights, char* slot) {
  for (int at = threadIndex() * 16; at < columns * chunkBytes; at += blockThreads * 16)
    copy16(slot + at, weights + at, true);
}

// acc += rows x columns of a step, for the first `groups` groups of 32 rows.
template <class Type, int groups, int fragments>
OCTCONV_DEVICE void multiplySlot(float (&acc)[4][fragments][4], const char* rows, const char* weights, int warpRow,
                                 int warpColumn) {
  const int lane = threadIndex() % 32;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t b[fragments][2];
#pragma unroll
    for (int j = 0; j < fragments; j += 2) {
      uint32_t both[4];
      const int column = warpColumn * fragments * 8 + j * 8 + lane / 16 * 8 + lane % 8;
      loadMatrices(both, weights + swizzled(column, half * 2 + lane / 8 % 2));
      b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
    }
#pragma unroll
    for (int i = 0; i < groups; i++) {
      uint32_t a[4];
      loadMatrices(a, rows + swizzled(i * 32 + warpRow * 16 + lane % 16, half * 2 + lane / 16));
      Type::round(a);
#pragma unroll
      for (int j = 0; j < fragments; j++) Type::multiply(acc[i][j], a, b[j]);
    }
  }
}

// --- Results -----------------------------------------------------------------------------------------------------

OCTCONV_DEVICE void storeFour(char* arena, const StoreArgs& store, const Pixel& p, int channel, const float (&v)[4]) {
  const TensorArgs& y = store.y;
  const int64_t at = elementAt(y, p, channel);
  const int count = y.channels - channel;  // what lies behind them is another value's
  if (y.narrow) {
    char* const to = arena + y.at + at * 2;
    const uint32_t words[2] = {packBf16(v[0], v[1]), packBf16(v[2], v[3])};
    if (count >= 4 && (y.at + at * 2) % 4 == 0) {
      reinterpret_cast<uint32_t*>(to)[0] = words[0], reinterpret_cast<uint32_t*>(to)[1] = words[1];
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < count) reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(words[i / 2] >> i % 2 * 16);
  } else {
    auto* const to = reinterpret_cast<float*>(arena + y.at) + at;
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < count) to[i] = v[i];
  }
}

// Four pixels, which are the phases of one low pixel or 32 rows apart, and four channels: y is their sums of products.
template <bool phased>
OCTCONV_DEVICE void finish(const BranchArgs& branch, char* arena, int rowTile, int low, int channel, float (&y)[4][4]) {
  Pixel pixels[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    pixels[i] = outputPixel<phased>(branch, rowTile, i, low);
#pragma unroll
    for (int c = 0; c < 4; c++) {
      y[i][c] += branch.bias[channel + c];
      if (branch.hasResidual && pixels[i].frame >= 0 && channel + c < branch.channels)
        y[i][c] += elementOf(arena, branch.residual, elementAt(branch.residual, pixels[i], channel + c));
    }
  }
#pragma unroll 1
  for (int k = 0; k < branch.stores; k++) {
    const StoreArgs& store = branch.store[k];
    float mean[4] = {}, count = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (pixels[i].frame < 0) continue;
      float v[4];
#pragma unroll
      for (int c = 0; c < 4; c++)
        v[c] = channel + c < branch.channels ? stored(store.activation, y[i][c], channel + c) : 0;
      if (store.pool == 0) {
        storeFour(arena, store, pixels[i], channel, v);
        continue;
      }
      count++;
#pragma unroll
      for (int c = 0; c < 4; c++) mean[c] += roundedTo(store.y.narrow, v[c]);
    }
    if (store.pool == 0 || count == 0) continue;
#pragma unroll
    for (int c = 0; c < 4; c++) mean[c] /= count;
    storeFour(arena, store, lowPixel(branch, rowTile, low), channel, mean);
  }
}

template <class Type, int columns, bool phased>
OCTCONV_DEVICE void computeTile(const BranchArgs& branch, char* arena, int tile) {
  constexpr int fragments = columns / 16;  // of 8 columns, of a warp
  constexpr int slotBytes = (tileRows + columns) * chunkBytes;
  const int columnTile = tile % branch.columnTiles, rowTile = tile / branch.columnTiles;
  const int warpRow = threadIndex() / 32 % 2, warpColumn = threadIndex() / 64;
  char* const shared = sharedMemory();

  int lowSteps = 0, steps = 0;
  for (int i = 0; i < branch.sources; i++) {
    steps += stepsOf(branch.source[i]);
    if (branch.source[i].upsample) lowSteps = steps;
  }
  const char* weights = branch.weights + static_cast<int64_t>(columnTile) * steps * columns * chunkBytes;
  Rows<Type, phased> rows(branch, arena, rowTile);
  Position at;
  const auto load = [&](int step) {
    if (step < steps) {
      char* const slot = shared + step % slots * slotBytes;
      rows.load(at, slot);
      loadWeights<columns>(weights + static_cast<int64_t>(step) * columns * chunkBytes, slot + tileRows * chunkBytes);
      at.advance(branch);
    }
    commitCopies();
  };

  float acc[4][fragments][4] = {};
#pragma unroll 1
  for (int step = 0; step < slots - 1; step++) load(step);
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    waitForCopies<slots - 2>();
    synchronize();
    load(step + slots - 1);
    const char* const slot = shared + step % slots * slotBytes;
    if (phased && step < lowSteps) {
      multiplySlot<Type, 1>(acc, slot, slot + tileRows * chunkBytes, warpRow, warpColumn);
      if (step + 1 < lowSteps) continue;
#pragma unroll
      for (int i = 1; i < 4; i++)
#pragma unroll
        for (int j = 0; j < fragments; j++)
#pragma unroll
          for (int k = 0; k < 4; k++) acc[i][j][k] = acc[0][j][k];
    } else {
      multiplySlot<Type, 4>(acc, slot, slot + tileRows * chunkBytes, warpRow, warpColumn);
    }
  }

  // Sums go through shared memory, half of the columns at a time: there a thread finds those that belong together.
  constexpr int half = columns / 2, pitch = half + 8;  // floats
  auto* const sums = reinterpret_cast<float*>(shared);
  const int lane = threadIndex() % 32;
#pragma unroll 1
  for (int side = 0; side < 2; side++) {
    synchronize();
    if (warpColumn == side) {
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < fragments; j++)
#pragma unroll
          for (int k = 0; k < 4; k++)
            sums[(i * 32 + warpRow * 16 + k / 2 * 8 + lane / 4) * pitch + j * 8 + lane % 4 * 2 + k % 2] = acc[i][j][k];
    }
    synchronize();
#pragma unroll 1
    for (int item = threadIndex(); item < 32 * half / 4; item += blockThreads) {
      const int low = item / (half / 4), column = item % (half / 4) * 4;
      const int channel = columnTile * columns + side * half + column;
      if (channel >= branch.channels) continue;
      float y[4][4];
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) y[i][c] = sums[(i * 32 + low) * pitch + column + c];
      finish<phased>(branch, arena, rowTile, low, channel, y);
    }
  }
}

template <class Type>
OCTCONV_DEVICE void compute(const OctConvArgs& args, char* arena) {
  int tile = blockIndex(), b = 0;
  while (tile >= args.branch[b].tiles) tile -= args.branch[b++].tiles;
  const BranchArgs& branch = args.branch[b];
  if (branch.columns == 64) {
    branch.phased ? computeTile<Type, 64, true>(branch, arena, tile)
                  : computeTile<Type, 64, false>(branch, arena, tile);
  } else {
    branch.phased ? computeTile<Type, 32, true>(branch, arena, tile)
                  : computeTile<Type, 32, false>(branch, arena, tile);
  }
}

// --- Without tensor cores --------------------------------------------------------------------------------------------

// The products of one output: few of them, where channels form groups.
OCTCONV_DEVICE float productsAt(const PlainArgs& a, const char* arena, const Pixel& p, int channel) {
  const BranchArgs& branch = a.branch;
  const auto* weight = reinterpret_cast<const float*>(branch.weights) + channel;
  float sum = 0;
#pragma unroll 1
  for (int k = 0; k < branch.sources; k++) {
    const SourceArgs& s = branch.source[k];
    const Extent size = pooledSize(s);
    const Pixel from = s.upsample ? Pixel{p.frame, p.y / 2, p.x / 2} : p;
    const int inputs = s.x.channels / a.groups, first = channel / (branch.channels / a.groups) * inputs;
#pragma unroll 1
    for (int kt = 0; kt < s.kernel.t; kt++)
#pragma unroll 1
      for (int ky = 0; ky < s.kernel.h; ky++)
#pragma unroll 1
        for (int kx = 0; kx < s.kernel.w; kx++) {
          const Pixel tap = tapPixel(s, size, from, branch.size.t, kt, ky, kx);
#pragma unroll 1
          for (int i = 0; i < inputs; i++, weight += branch.channels)
            if (tap.frame >= 0) sum += preparedAt(arena, s, tap, first + i, a.narrow) * *weight;
        }
  }
  return sum;
}

OCTCONV_DEVICE float gatedAt(const PlainArgs& a, const char* arena, const Pixel& p, int channel) {
  const int64_t gate = static_cast<int64_t>(p.frame / a.branch.size.t) * a.gate.pitch + channel;
  return elementOf(arena, a.x, elementAt(a.x, p, channel)) * elementOf(arena, a.gate, gate);
}

}  // namespace

// One channel of an output pixel, or of the four of a low pixel: a plain loop, for branches that have next to nothing
// to multiply. Groups of many channels are computed right here, not fast.
OCTCONV_KERNEL void __launch_bounds__(itemThreads, 4) octConvPlain(const __grid_constant__ PlainArgs a, char* arena) {
  const BranchArgs& branch = a.branch;
  const int64_t item = itemIndex(), index = item / branch.channels;
  const int channel = static_cast<int>(item - index * branch.channels);
  const Extent& size = branch.size;
  const Extent half{size.t, (size.h + 1) / 2, (size.w + 1) / 2};
  const Pixel low = pixelAt(static_cast<unsigned>(index), branch.n, branch.phased ? half : size);
  if (low.frame < 0) return;
  float means[mostStores] = {}, count = 0;
#pragma unroll 1
  for (int i = 0; i < (branch.phased ? 4 : 1); i++) {
    const Pixel p = branch.phased ? Pixel{low.frame, low.y * 2 + i / 2, low.x * 2 + i % 2} : low;
    if (p.y >= size.h || p.x >= size.w) continue;
    count++;
    float y = a.gated ? gatedAt(a, arena, p, channel) : productsAt(a, arena, p, channel) + branch.bias[channel];
    if (branch.hasResidual) y += elementOf(arena, branch.residual, elementAt(branch.residual, p, channel));
#pragma unroll
    for (int k = 0; k < mostStores; k++) {
      if (k >= branch.stores) continue;
      const StoreArgs& store = branch.store[k];
      const float v = stored(store.activation, y, channel);
      if (store.pool == 0) {
        setElement(arena, store.y, elementAt(store.y, p, channel), v);
      } else {
        means[k] += roundedTo(store.y.narrow, v);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < mostStores; k++)
    if (k < branch.stores && branch.store[k].pool > 0)
      setElement(arena, branch.store[k].y, elementAt(branch.store[k].y, low, channel), means[k] / count);
}

OCTCONV_KERNEL void __launch_bounds__(blockThreads, 2)
    octConvBf16(const __grid_constant__ OctConvArgs args, char* arena) {
  compute<Bf16>(args, arena);
}
OCTCONV_KERNEL void __launch_bounds__(blockThreads, 2)
    octConvTf32(const __grid_constant__ OctConvArgs args, char* arena) {
  compute<Tf32>(args, arena);
}

}  // namespace octconv::cuda
