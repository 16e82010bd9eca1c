// octConv on tensor cores: each block computes a tile of one branch, 128 or 256 pixels x 32 to 128 channels, as one
// product over all sources, taps and input channels.
//
// Polyphase rows: where a product is upsampled or a store is pooled, the rows of a tile are [phase][low pixel], phase =
// (row parity, column parity). The four pixels of a low pixel are then the same element of four accumulators of one
// thread: the low product is their start value, P of the result is their mean.
//
// Groups of channels: a tile of 32 columns reads only the inputs of the groups that its columns belong to, and
// multiplies all of them with all of its columns. Weights between different groups are 0. With groups of 4 in 16 bits
// seven of eight products are with such zeros; tensor cores still take no longer than the copies do.
//
// Depthwise convolutions, of which 31 of 32 products would be with zeros, and gates have a kernel without tensor cores,
// octConvDepthwise.
//
// High and low branch are blocks of one launch; no block waits for another. The input channels of a tap come in chunks
// of 64 bytes, which are copied two steps ahead. Where there are fewer tiles than the GPU has room for, blocks share
// the steps of a tile: they write their sums, which a second launch adds up, always in the same order.
#include "../../cuda/functions.h"
#include "../../cuda/items.h"
#include "../../cuda/products.h"
#include "cuda.h"

namespace octconv::cuda {
namespace {

// How the eight warps of a block share a tile: each has 16 rows of every group, and some columns.
template <int tile>
struct Shape {
  static constexpr int lows = tiles[tile].lows, columns = tiles[tile].columns;
  static constexpr int warpRows = lows / 16, warpColumns = blockThreads / 32 / warpRows;
  static constexpr int fragments = columns / warpColumns / 8;  // of 8 columns, of a warp
  static constexpr int rowBytes = 4 * lows * chunkBytes;       // of a slot, before its weights
  static constexpr int copies = 4 * lows * 4 / blockThreads;   // of rows' pieces, of a thread
  static constexpr int weightCopies = (columns * 4 + blockThreads - 1) / blockThreads;
};

OCTCONV_DEVICE float activated(const ActivationArgs& a, float x, int channel) {
  if (a.scale) x = a.scale[channel] * x + a.shift[channel];
  if (a.function >= 0) x = valueOf(static_cast<Unary>(a.function), a.slope, x);
  return clamp(x, a.least, a.most);
}

// --- Where rows lie --------------------------------------------------------------------------------------------------

// An output pixel of a tile, in shared memory: frame, and y * 2^16 + x.
struct alignas(8) Place {
  int frame;  // see Pixel
  uint32_t yx;
};

// Low pixel `index`, and its phases.
OCTCONV_DEVICE Pixel lowPixel(const BranchArgs& branch, unsigned index) {
  const Extent& size = branch.size;
  return pixelAt(index, branch.n, {size.t, (size.h + 1) / 2, (size.w + 1) / 2});
}
OCTCONV_DEVICE Pixel phaseOf(const BranchArgs& branch, const Pixel& low, int phase) {
  const Pixel p{low.frame, low.y * 2 + phase / 2, low.x * 2 + phase % 2};
  return {p.y < branch.size.h && p.x < branch.size.w ? p.frame : -1, p.y, p.x};
}

// In the main kernels: behind the slots.
template <int tile>
OCTCONV_DEVICE Place* placesOf() {
  return reinterpret_cast<Place*>(sharedMemory() + slots * slotBytes(tiles[tile]));
}
OCTCONV_DEVICE Pixel pixelOf(const Place& place) {
  return {place.frame, static_cast<int>(place.yx >> 16), static_cast<int>(place.yx & 0xffff)};
}

// Pixels of a tile that lie a group apart.
template <int tile>
struct PlacesOf {
  const Place* first;
  OCTCONV_DEVICE Pixel operator()(int group) const { return pixelOf(first[group * Shape<tile>::lows]); }
};

// Row `group` * lows + `low` of a tile.
template <int tile, bool phased>
OCTCONV_DEVICE Pixel outputPixel(const BranchArgs& branch, int rowTile, int group, int low) {
  constexpr unsigned lows = Shape<tile>::lows;
  if constexpr (!phased) {
    return pixelAt(static_cast<unsigned>(rowTile) * 4 * lows + group * lows + low, branch.n, branch.size);
  } else {
    return phaseOf(branch, lowPixel(branch, rowTile * lows + low), group);
  }
}

// The frame of a source of extent `size` that tap kt of the window at `frame` of the output reads; negative: none.
OCTCONV_DEVICE int tapFrame(const SourceArgs& s, int frame, int frames, int kt) {
  if (frames == 1 && s.x.size.t == 1) return kt * s.dilation.t == s.padding.t ? frame : -1;
  const int n = frame / frames, t = (frame - n * frames) * s.stride.t - s.padding.t + kt * s.dilation.t;
  return frame >= 0 && t >= 0 && t < s.x.size.t ? n * s.x.size.t + t : -1;
}

// The pixel of a source that a tap of the window at `p` reads; `frames` is T of `p`.
OCTCONV_DEVICE Pixel tapPixel(const SourceArgs& s, const Pixel& p, int frames, int kt, int ky, int kx) {
  const Pixel tap{tapFrame(s, p.frame, frames, kt), p.y * s.stride.h - s.padding.h + ky * s.dilation.h,
                  p.x * s.stride.w - s.padding.w + kx * s.dilation.w};
  const bool inside = p.frame >= 0 && tap.y >= 0 && tap.y < s.x.size.h && tap.x >= 0 && tap.x < s.x.size.w;
  return {inside ? tap.frame : -1, tap.y, tap.x};
}

OCTCONV_DEVICE int firstGroupOf(const BranchArgs& branch, int column) {
  return firstGroup(column, branch.channels / branch.groups);
}

// --- The main loop ---------------------------------------------------------------------------------------------------

OCTCONV_DEVICE int stepsOf(const SourceArgs& s) { return s.kernel.t * s.kernel.h * s.kernel.w * s.chunks; }

// Brings the inputs and weights of one step after the other into shared memory. The steps of a tile are sources, their
// taps, their chunks. What a thread copies: a piece of rows that are lows apart, and pieces of weights.
template <class Type, int tile, bool phased, bool grouped>
struct Loader {
  using Of = Shape<tile>;
  static constexpr int rowsTogether = blockThreads / 4;  // that all threads copy at once
  static constexpr int weightPieces = Of::columns * 4, unitPieces = unitBytes / 16;

  const BranchArgs& branch;
  char* const arena;
  int source = 0, kt = 0, ky = 0, kx = 0;
  int left;                   // steps before the tap changes
  uint32_t rows[Of::copies];  // pieces of 16 bytes from the arena's begin
  unsigned valid;             // a bit of each
  int bytes = 0;              // of the pixels that are left, or of what is read of them, from this piece on
  int group;                  // the first one of the tile
  const char* weights;
  int64_t unitStride;
  int units;  // that have weights
  Copy16 rowCopies[Of::copies], weightCopies[Of::weightCopies];

  OCTCONV_DEVICE Loader(const BranchArgs& branch, char* arena, int columnTile, int steps, int first)
      : branch(branch),
        arena(arena),
        group(grouped ? firstGroupOf(branch, columnTile * Of::columns) : 0),
        unitStride(static_cast<int64_t>(steps) * unitBytes) {
    constexpr int tileUnits = Of::columns / unitColumns;
    units = (branch.channels + unitColumns - 1) / unitColumns - columnTile * tileUnits;
    weights = branch.weights + (columnTile * tileUnits + threadIndex() / unitPieces) * unitStride +
              static_cast<int64_t>(first) * unitBytes + threadIndex() % unitPieces * 16;
    while (first >= stepsOf(branch.source[source])) first -= stepsOf(branch.source[source++]);
    const SourceArgs& s = branch.source[source];
    const int tap = first / s.chunks;
    kx = tap % s.kernel.w, ky = tap / s.kernel.w % s.kernel.h, kt = tap / s.kernel.w / s.kernel.h;
    findTap(first - tap * s.chunks);
  }

  OCTCONV_DEVICE void copy(char* slot) {
    const int piece = threadIndex() % 4, row = threadIndex() / 4;
#pragma unroll
    for (int i = 0; i < Of::copies; i++) {
      rowCopies[i].begin(slot + swizzled(row, piece) + i * rowsTogether * chunkBytes, arena + int64_t{rows[i]} * 16,
                         (valid >> i & 1) && bytes > 0);
      rows[i] += chunkBytes / 16;
    }
    bytes -= chunkBytes;
#pragma unroll
    for (int i = 0; i < Of::weightCopies; i++) {
      const int at = threadIndex() + i * blockThreads, unit = at / unitPieces;
      if (weightPieces % blockThreads == 0 || at < weightPieces)
        weightCopies[i].begin(slot + Of::rowBytes + at * 16, weights + i * (blockThreads / unitPieces) * unitStride,
                              unit < units);
    }
    weights += unitBytes;
  }
  OCTCONV_DEVICE void endCopies() {
#pragma unroll
    for (Copy16& copy : rowCopies) copy.end();
#pragma unroll
    for (int i = 0; i < Of::weightCopies; i++)
      if (weightPieces % blockThreads == 0 || threadIndex() + i * blockThreads < weightPieces) weightCopies[i].end();
  }

  OCTCONV_DEVICE void nextTap() {
    if (source == branch.sources) return;
    const SourceArgs& s = branch.source[source];
    if (++kx == s.kernel.w) kx = 0, ky++;
    if (ky == s.kernel.h) ky = 0, kt++;
    if (kt == s.kernel.t) kt = 0, source++;
    findTap(0);
  }

 private:
  // From a chunk of a tap on. Behind the last tap there are zeros for ever.
  OCTCONV_DEVICE void findTap(int chunk) {
    valid = 0, left = INT32_MAX;
    if (source == branch.sources) {
      units = 0;
      return;
    }
    const SourceArgs& s = branch.source[source];
    const int piece = threadIndex() % 4, row = threadIndex() / 4;
    left = s.chunks - chunk;
    const int window = grouped ? firstPiece<int>(group, s.inputs, Type::bytes) : 0;
    bytes = s.x.channels * Type::bytes - window * 16;
    if (grouped && s.window < bytes) bytes = s.window;
    bytes -= chunk * chunkBytes + piece * 16;
#pragma unroll
    for (int i = 0; i < Of::copies; i++) {
      rows[i] = 0;
      if (phased && s.upsample && row + i * rowsTogether >= Of::lows) continue;
      Pixel p = pixelOf(placesOf<tile>()[row + i * rowsTogether]);
      if (phased && s.upsample) p.y /= 2, p.x /= 2;
      const Pixel tap = tapPixel(s, p, branch.size.t, kt, ky, kx);
      if (tap.frame < 0) continue;
      valid |= 1u << i;
      const int64_t pixel = s.x.at + elementAt(s.x, tap, 0) * Type::bytes;
      rows[i] = static_cast<uint32_t>(pixel / 16) + window + chunk * (chunkBytes / 16) + piece;
    }
  }
};

// acc += rows x columns of a step, for the first `groups` groups.
template <class Type, int tile, int groups>
OCTCONV_DEVICE void multiplySlot(float (&acc)[4][Shape<tile>::fragments][4], const char* slot) {
  using Of = Shape<tile>;
  const int lane = threadIndex() % 32, warpRow = threadIndex() / 32 % Of::warpRows,
            warpColumn = threadIndex() / 32 / Of::warpRows;
  const int row = warpRow * 16 + lane % 16, column = warpColumn * Of::fragments * 8 + lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t b[Of::fragments][2];
#pragma unroll
    for (int j = 0; j < Of::fragments; j += 2) {
      uint32_t both[4];
      loadMatrices(both, slot + Of::rowBytes + swizzled(column, half * 2 + lane / 8 % 2) + j * 8 * chunkBytes);
      b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
    }
#pragma unroll
    for (int i = 0; i < groups; i++) {
      uint32_t a[4];
      loadMatrices(a, slot + swizzled(row, half * 2 + lane / 16) + i * Of::lows * chunkBytes);
      Type::round(a);
#pragma unroll
      for (int j = 0; j < Of::fragments; j++) Type::multiply(acc[i][j], a, b[j]);
    }
  }
}

// The slots in turn: one is read while the one before it is filled for the step after the next.
template <int tile>
struct Ring {
  static constexpr int size = slots * slotBytes(tiles[tile]);
  int read = 0, fill = (slots - 1) * slotBytes(tiles[tile]);

  OCTCONV_DEVICE void advance() {
    fill = read;
    read = read + slotBytes(tiles[tile]) == size ? 0 : read + slotBytes(tiles[tile]);
  }
};

template <class Type, int tile, int groups, class TileLoader>
OCTCONV_DEVICE void multiplySteps(float (&acc)[4][Shape<tile>::fragments][4], int steps, TileLoader& loader,
                                  Ring<tile>& ring) {
#pragma unroll 1
  while (steps > 0) {
    int some = loader.left < steps ? loader.left : steps;
    steps -= some, loader.left -= some;
#pragma unroll 1
    for (; some > 0; some--) {
      waitForCopies<slots - 2>();
      synchronize();
      loader.copy(sharedMemory() + ring.fill);
      commitCopies();
      multiplySlot<Type, tile, groups>(acc, sharedMemory() + ring.read);
      loader.endCopies();
      ring.advance();
    }
    if (loader.left == 0) loader.nextTap();
  }
}

// --- Results ---------------------------------------------------------------------------------------------------------

// What a block writes that shares a tile: [row][column].
template <int tile>
inline constexpr int partialSize = 4 * Shape<tile>::lows* Shape<tile>::columns;

template <int tile>
OCTCONV_DEVICE float* partialOf(const BranchArgs& branch, char* arena, int tileIndex) {
  return reinterpret_cast<float*>(arena + branch.partials) +
         static_cast<int64_t>(tileIndex) * branch.splits * partialSize<tile>;
}

// The elements of four channels at a pixel; `count` of them are of the value.
OCTCONV_DEVICE void loadFour(float (&v)[4], const char* arena, const TensorArgs& x, const Pixel& p, int channel) {
  const int64_t at = elementAt(x, p, channel);
  const int count = x.channels - channel, bytes = x.dtype == DType::f32 ? 4 : 2;
  const char* const from = arena + x.at + at * bytes;
  if (count >= 4 && (x.at + at * bytes) % (4 * bytes) == 0) {
    if (x.dtype == DType::f32) {
      const auto* const words = reinterpret_cast<const Words<4>*>(from);
#pragma unroll
      for (int i = 0; i < 4; i++) v[i] = floatOfBits(words->word[i]);
    } else {
      const auto* const words = reinterpret_cast<const Words<2>*>(from);
#pragma unroll
      for (int i = 0; i < 4; i++) v[i] = unpacked(x.dtype, words->word[i / 2] >> i % 2 * 16);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = i < count ? elementOf(arena, x, at + i) : 0;
}

OCTCONV_DEVICE void storeFour(char* arena, const TensorArgs& y, const Pixel& p, int channel, const float (&v)[4]) {
  const int64_t at = elementAt(y, p, channel);
  const int count = y.channels + y.pad - channel,
            bytes = y.dtype == DType::f32 ? 4 : 2;  // behind them another value may lie
  char* const to = arena + y.at + at * bytes;
  if (count >= 4 && (y.at + at * bytes) % (4 * bytes) == 0) {
    if (y.dtype == DType::f32) {
      *reinterpret_cast<Words<4>*>(to) = {bitsOfFloat(v[0]), bitsOfFloat(v[1]), bitsOfFloat(v[2]), bitsOfFloat(v[3])};
    } else {
      *reinterpret_cast<Words<2>*>(to) = {packed(y.dtype, v[0], v[1]), packed(y.dtype, v[2], v[3])};
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (i < count) setElement(arena, y, at + i, v[i]);
}

// One sum, of the inputs of its group alone.
OCTCONV_DEVICE float productsAt(const BranchArgs& branch, const char* arena, const Pixel& p, int channel) {
  int steps = 0;
  for (int k = 0; k < branch.sources; k++) steps += stepsOf(branch.source[k]);
  const char* weights = branch.weights + static_cast<int64_t>(channel / unitColumns) * steps * unitBytes;
  const int group = channel / (branch.channels / branch.groups), column = channel % unitColumns;
  float sum = 0;
#pragma unroll 1
  for (int k = 0; k < branch.sources; k++) {
    const SourceArgs& s = branch.source[k];
    const Pixel from = s.upsample ? Pixel{p.frame, p.y / 2, p.x / 2} : p;
    const int bytes = s.x.dtype == DType::f32 ? 4 : 2,
              window = firstPiece(firstGroupOf(branch, channel), s.inputs, bytes);
#pragma unroll 1
    for (int tap = 0; tap < s.kernel.t * s.kernel.h * s.kernel.w; tap++, weights += s.chunks * unitBytes) {
      const int row = tap / s.kernel.w;
      const Pixel x = tapPixel(s, from, branch.size.t, row / s.kernel.h, row % s.kernel.h, tap % s.kernel.w);
      if (x.frame < 0) continue;
#pragma unroll 1
      for (int i = group * s.inputs; i < (group + 1) * s.inputs; i++) {
        const int byte = i * bytes - window * 16;
        TensorArgs weight{swizzled(column, byte % chunkBytes / 16) + byte % 16, {}, 1, 0, 1, s.x.dtype};
        sum +=
            elementOf(arena, s.x, elementAt(s.x, x, i)) * elementOf(weights + byte / chunkBytes * unitBytes, weight, 0);
      }
    }
  }
  return sum;
}

// Computes sums that are not finite again, from the inputs of their group alone: the main loop also multiplied inputs
// of other groups by 0, and NaN or infinity times 0 is NaN. Arguments as of finish().
template <class PixelOf>
OCTCONV_DEVICE void mend(const BranchArgs& branch, const char* arena, const PixelOf& pixelOf, int channel, float* sums,
                         int stride) {
#pragma unroll 1
  for (int i = 0; i < 16; i++) {
    float& sum = sums[i / 4 * stride + i % 4];
    const Pixel p = pixelOf(i / 4);
    if ((bitsOfFloat(sum) & 0x7f800000) == 0x7f800000 && p.frame >= 0 && channel + i % 4 < branch.channels)
      sum = productsAt(branch, arena, p, channel + i % 4);
  }
}

// Four pixels and four channels: `pixelOf` says where the pixels lie, the phases of a low pixel if `phased`; `sums` of
// their products lie `stride` floats apart.
template <bool phased, class PixelOf>
OCTCONV_DEVICE void finish(const BranchArgs& branch, char* arena, const PixelOf& pixelOf, int channel, float* sums,
                           int stride) {
  using Four = Words<4>;
#pragma unroll 1
  for (int i = 0; i < 4; i++) {
    const Pixel p = pixelOf(i);
    float residual[4] = {};
    if (branch.hasResidual && p.frame >= 0) loadFour(residual, arena, branch.residual, p, channel);
    Four y = *reinterpret_cast<const Four*>(sums + i * stride);
#pragma unroll
    for (int c = 0; c < 4; c++)
      y.word[c] = bitsOfFloat(floatOfBits(y.word[c]) + (branch.bias ? branch.bias[channel + c] : 0) + residual[c]);
    *reinterpret_cast<Four*>(sums + i * stride) = y;
  }
#pragma unroll 1
  for (int k = 0; k < branch.stores; k++) {
    const StoreArgs& store = branch.store[k];
    float mean[4] = {}, count = 0;
#pragma unroll 1
    for (int i = 0; i < 4; i++) {
      const Pixel p = pixelOf(i);
      if (p.frame < 0) continue;
      const Four y = *reinterpret_cast<const Four*>(sums + i * stride);
      float v[4];
#pragma unroll
      for (int c = 0; c < 4; c++)
        v[c] = channel + c < branch.channels ? activated(store.activation, floatOfBits(y.word[c]), channel + c) : 0;
      if (store.pool == 0) {
        storeFour(arena, store.y, p, channel, v);
        continue;
      }
      count++;
#pragma unroll
      for (int c = 0; c < 4; c++) mean[c] += roundedTo(store.y.dtype, v[c]);
    }
    if constexpr (phased) {
      if (store.pool == 0 || count == 0) continue;
#pragma unroll
      for (int c = 0; c < 4; c++) mean[c] /= count;
      const Pixel first = pixelOf(0);
      storeFour(arena, store.y, {first.frame, first.y / 2, first.x / 2}, channel, mean);
    }
  }
}

template <int tile, bool phased>
OCTCONV_DEVICE void findPlaces(const BranchArgs& branch, int rowTile, Place* places) {
  constexpr int lows = Shape<tile>::lows;
  for (int row = threadIndex(); row < 4 * lows; row += blockThreads) {
    const Pixel p = outputPixel<tile, phased>(branch, rowTile, row / lows, row % lows);
    places[row] = {p.frame, static_cast<uint32_t>(p.y) << 16 | static_cast<uint32_t>(p.x)};
  }
  synchronize();
}

template <class Type, int tile, bool phased, bool grouped>
OCTCONV_DEVICE void computeTile(const BranchArgs& branch, char* arena, int block) {
  using Of = Shape<tile>;
  const int split = block % branch.splits, tileIndex = block / branch.splits;
  const int columnTile = tileIndex % branch.columnTiles, rowTile = tileIndex / branch.columnTiles;
  findPlaces<tile, phased>(branch, rowTile, placesOf<tile>());
  int lowSteps = 0, steps = 0;
  for (int i = 0; i < branch.sources; i++) {
    steps += stepsOf(branch.source[i]);
    if (branch.source[i].upsample) lowSteps = steps;
  }
  // This block's, of which the first ones are of low products.
  const int first = static_cast<int>(static_cast<int64_t>(steps) * split / branch.splits),
            last = static_cast<int>(static_cast<int64_t>(steps) * (split + 1) / branch.splits);
  const int low = lowSteps <= first ? 0 : (lowSteps < last ? lowSteps : last) - first;

  float acc[4][Of::fragments][4] = {};
  Loader<Type, tile, phased, grouped> loader(branch, arena, columnTile, steps, first);
  Ring<tile> ring;
#pragma unroll 1
  for (int slot = 0; slot < slots - 1; slot++) {
    loader.copy(sharedMemory() + slot * slotBytes(tiles[tile]));
    loader.endCopies();
    commitCopies();
    if (--loader.left == 0) loader.nextTap();
  }
  if (phased) {
    multiplySteps<Type, tile, 1>(acc, low, loader, ring);
#pragma unroll
    for (int i = 1; i < 4; i++)
#pragma unroll
      for (int j = 0; j < Of::fragments; j++)
#pragma unroll
        for (int k = 0; k < 4; k++) acc[i][j][k] = acc[0][j][k];
  }
  multiplySteps<Type, tile, 4>(acc, last - first - low, loader, ring);
  waitForCopies<0>();

  const int lane = threadIndex() % 32, warpRow = threadIndex() / 32 % Of::warpRows,
            warpColumn = threadIndex() / 32 / Of::warpRows;
  const auto put = [&](float* to, int pitch) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < Of::fragments; j++)
#pragma unroll
        for (int k = 0; k < 4; k += 2)
          *reinterpret_cast<Words<2>*>(to + (i * Of::lows + k / 2 * 8) * pitch + j * 8) = {
              bitsOfFloat(acc[i][j][k]), bitsOfFloat(acc[i][j][k + 1])};
  };
  const int row = warpRow * 16 + lane / 4, column = lane % 4 * 2;  // of the warp's columns
  if (branch.splits > 1) {
    float* const partial = partialOf<tile>(branch, arena, tileIndex) + split * partialSize<tile>;
    return put(partial + row * Of::columns + warpColumn * Of::fragments * 8 + column, Of::columns);
  }
  // Sums go through shared memory, half of the columns at a time: there a thread finds those that belong together.
  constexpr int half = Of::columns / 2, pitch = half + 8;  // floats
  auto* const sums = reinterpret_cast<float*>(sharedMemory());
#pragma unroll 1
  for (int side = 0; side < 2; side++) {
    synchronize();
    if (warpColumn / (Of::warpColumns / 2) == side)
      put(sums + row * pitch + warpColumn % (Of::warpColumns / 2) * Of::fragments * 8 + column, pitch);
    synchronize();
#pragma unroll 1
    for (int item = threadIndex(); item < Of::lows * half / 4; item += blockThreads) {
      const int low = item / (half / 4), column = item % (half / 4) * 4;
      const int channel = columnTile * Of::columns + side * half + column;
      if (channel >= branch.storedChannels) continue;
      const PlacesOf<tile> pixels{placesOf<tile>() + low};
      float* const own = sums + low * pitch + column;
      if (grouped && branch.groups > 1) mend(branch, arena, pixels, channel, own, Of::lows * pitch);
      finish<phased>(branch, arena, pixels, channel, own, Of::lows * pitch);
    }
  }
}

// A part of a tile, whose sums are those of all of its splits.
template <int tile, bool phased>
OCTCONV_DEVICE void addSplits(const BranchArgs& branch, char* arena, int block) {
  using Of = Shape<tile>;
  const int tileIndex = block / partsOf(tiles[tile]),
            item = block % partsOf(tiles[tile]) * blockThreads + threadIndex();
  auto* const places = reinterpret_cast<Place*>(sharedMemory());
  findPlaces<tile, phased>(branch, tileIndex / branch.columnTiles, places);
  const int low = item / (Of::columns / 4), column = item % (Of::columns / 4) * 4;
  const int channel = tileIndex % branch.columnTiles * Of::columns + column;
  if (channel >= branch.storedChannels) return;
  float* const own = partialOf<tile>(branch, arena, tileIndex) + low * Of::columns + column;
#pragma unroll 1
  for (int i = 0; i < 4; i++) {
    auto* const at = reinterpret_cast<Words<4>*>(own + i * Of::lows * Of::columns);
    float sum[4] = {};
#pragma unroll 4
    for (int k = 0; k < branch.splits; k++) {
      const Words<4> partial = at[k * partialSize<tile> / 4];
#pragma unroll
      for (int c = 0; c < 4; c++) sum[c] += floatOfBits(partial.word[c]);
    }
    *at = {bitsOfFloat(sum[0]), bitsOfFloat(sum[1]), bitsOfFloat(sum[2]), bitsOfFloat(sum[3])};
  }
  const PlacesOf<tile> pixels{places + low};
  if (tile == groupedTile && branch.groups > 1) mend(branch, arena, pixels, channel, own, Of::lows * Of::columns);
  finish<phased>(branch, arena, pixels, channel, own, Of::lows * Of::columns);
}

// The branch that a block is of, of which there are `blocksOf`; `block` becomes its number in it.
template <class BlocksOf>
OCTCONV_DEVICE const BranchArgs& branchOf(const OctConvArgs& args, int& block, BlocksOf&& blocksOf) {
  int b = 0;
  while (block >= blocksOf(args.branch[b])) block -= blocksOf(args.branch[b++]);
  return args.branch[b];
}

template <class Type, int tile, bool grouped = false>
OCTCONV_DEVICE void computeTile(const BranchArgs& branch, char* arena, int block) {
  branch.phased ? computeTile<Type, tile, true, grouped>(branch, arena, block)
                : computeTile<Type, tile, false, grouped>(branch, arena, block);
}
OCTCONV_DEVICE const BranchArgs& branchOf(const OctConvArgs& args, int& block) {
  return branchOf(args, block, [](const BranchArgs& b) { return b.blocks; });
}
template <class Type>
OCTCONV_DEVICE void compute(const OctConvArgs& args, char* arena) {
  int block = blockIndex();
  const BranchArgs& branch = branchOf(args, block);
  switch (branch.tile) {
    case 0:
      return computeTile<Type, 0>(branch, arena, block);
    case 1:
      return computeTile<Type, 1>(branch, arena, block);
    case 2:
      return computeTile<Type, 2>(branch, arena, block);
    case 3:
      return computeTile<Type, 3>(branch, arena, block);
  }
}
// With one tile alone.
template <class Type, int tile>
OCTCONV_DEVICE void computeAll(const OctConvArgs& args, char* arena) {
  int block = blockIndex();
  const BranchArgs& branch = branchOf(args, block);
  computeTile<Type, tile, tile == groupedTile>(branch, arena, block);
}

template <int tile>
OCTCONV_DEVICE void addSplits(const BranchArgs& branch, char* arena, int block) {
  branch.phased ? addSplits<tile, true>(branch, arena, block) : addSplits<tile, false>(branch, arena, block);
}

// --- Depthwise -------------------------------------------------------------------------------------------------------

// 16 bytes of a pixel's channels.
using Piece = Words<4>;
template <DType type>
inline constexpr int pieceChannels = type == DType::f32 ? 4 : 8;

template <DType type>
OCTCONV_DEVICE float elementOf(const Piece& piece, int i) {
  return type == DType::f32 ? floatOfBits(piece.word[i]) : unpacked(type, piece.word[i / 2] >> i % 2 * 16);
}

// Adds to the sums of two pixels of a row the products of `taps` weights that lie next to each other in a row of the
// kernel. `row`: of inputs, which has so many columns; `x`: the column that the first pixel's first tap reads. Three
// taps of stride 1 read four inputs for both pixels, of stride 2 five.
template <DType type, int taps, int stride>
OCTCONV_DEVICE void addTaps(float (&sums)[2][pieceChannels<type>], const SourceArgs& s, const Piece* row, int x,
                            const Piece* weights, int tapPieces) {
  constexpr int channels = pieceChannels<type>, inputs = taps > 1 ? taps + stride : 2;
  const int step = taps > 1 ? 1 : s.stride.w, pixelPieces = s.x.pitch / channels;
  Piece w[taps], v[inputs];
#pragma unroll
  for (int j = 0; j < inputs; j++) {
    const int at = x + j * step;
    v[j] = static_cast<unsigned>(at) < static_cast<unsigned>(s.x.size.w) ? row[int64_t{at} * pixelPieces] : Piece{};
  }
#pragma unroll
  for (int k = 0; k < taps; k++) w[k] = weights[k * tapPieces];
#pragma unroll
  for (int j = 0; j < inputs; j++)
#pragma unroll
    for (int column = 0; column < 2; column++) {
      const int k = taps > 1 ? j - column * stride : j == column ? 0 : -1;
      if (k < 0 || k >= taps) continue;
#pragma unroll
      for (int c = 0; c < channels; c++) sums[column][c] += elementOf<type>(v[j], c) * elementOf<type>(w[k], c);
    }
}

template <DType type>
OCTCONV_DEVICE void addSources(float (&sums)[2][2][pieceChannels<type>], const BranchArgs& branch, const char* arena,
                               const Pixel& low, int channel) {
  constexpr int channels = pieceChannels<type>;
  const int tapPieces = (branch.channels + channels - 1) / channels;
  const Piece* weights = reinterpret_cast<const Piece*>(branch.weights) + channel / channels;
#pragma unroll 1
  for (int k = 0; k < branch.sources; k++) {
    const SourceArgs& s = branch.source[k];
    const int x = low.x * 2 * s.stride.w - s.padding.w;
#pragma unroll 1
    for (int kt = 0; kt < s.kernel.t; kt++) {
      const int frame = tapFrame(s, low.frame, branch.size.t, kt);
#pragma unroll 1
      for (int ky = 0; ky < s.kernel.h; ky++, weights += s.kernel.w * tapPieces) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int y = (low.y * 2 + i) * s.stride.h - s.padding.h + ky * s.dilation.h;
          if (frame < 0 || y < 0 || y >= s.x.size.h) continue;
          const auto* const row =
              reinterpret_cast<const Piece*>(arena + s.x.at) + elementAt(s.x, {frame, y, 0}, channel) / channels;
          int taps = 0;
#pragma unroll 1
          for (int kx = 0; kx < s.kernel.w; kx += taps) {
            const int first = x + kx * s.dilation.w;
            const Piece* const w = weights + kx * tapPieces;
            taps = s.kernel.w - kx >= 3 && s.dilation.w == 1 && s.stride.w <= 2 ? 3 : 1;
            if (taps == 1) {
              addTaps<type, 1, 0>(sums[i], s, row, first, w, tapPieces);
            } else if (s.stride.w == 1) {
              addTaps<type, 3, 1>(sums[i], s, row, first, w, tapPieces);
            } else {
              addTaps<type, 3, 2>(sums[i], s, row, first, w, tapPieces);
            }
          }
        }
      }
    }
  }
}

OCTCONV_DEVICE void gate(float (&sums)[2][2][4], const BranchArgs& branch, const char* arena, const Pixel& low,
                         int channel) {
  float factors[4];
  loadFour(factors, arena, branch.gate, {low.frame / branch.size.t, 0, 0}, channel);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const Pixel p = phaseOf(branch, low, i);
    if (p.frame < 0) continue;
    loadFour(sums[i / 2][i % 2], arena, branch.source[0].x, p, channel);
#pragma unroll
    for (int c = 0; c < 4; c++) sums[i / 2][i % 2][c] *= factors[c];
  }
}

// A low pixel and a piece of channels.
struct Item {
  Pixel low;
  int channel;
};
OCTCONV_DEVICE Item itemAt(const BranchArgs& branch, unsigned index, int channels) {
  const unsigned pieces = (branch.storedChannels + channels - 1) / channels, low = index / pieces;
  return {lowPixel(branch, low), static_cast<int>(index - low * pieces) * channels};
}

template <DType type, bool gated>
OCTCONV_DEVICE void computeDepthwise(const BranchArgs& branch, char* arena, int block) {
  constexpr int channels = pieceChannels<type>, fours = channels / 4, stride = fours * depthwiseThreads * 4;
  auto* const shared = reinterpret_cast<float*>(sharedMemory());  // [pixel][four][thread]
  const unsigned first = static_cast<unsigned>(block) * depthwiseThreads;
  const Item own = itemAt(branch, first + threadIndex(), channels);
  float sums[2][2][channels] = {};
  if (own.low.frame >= 0 && own.channel < branch.channels) {
    if constexpr (gated) {
      gate(sums, branch, arena, own.low, own.channel);
    } else {
      addSources<type>(sums, branch, arena, own.low, own.channel);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int c = 0; c < channels; c += 4) {
      const float* const four = sums[i / 2][i % 2] + c;
      *reinterpret_cast<Words<4>*>(shared + i * stride + c * depthwiseThreads + threadIndex() * 4) = {
          bitsOfFloat(four[0]), bitsOfFloat(four[1]), bitsOfFloat(four[2]), bitsOfFloat(four[3])};
    }
  synchronize();
  // Neighbouring threads store neighbouring fours.
#pragma unroll 1
  for (int i = threadIndex(); i < fours * depthwiseThreads; i += depthwiseThreads) {
    const int owner = i / fours, four = i % fours;
    const Item item = itemAt(branch, first + owner, channels);
    const int channel = item.channel + four * 4;
    if (item.low.frame < 0 || channel >= branch.storedChannels) continue;
    finish<true>(
        branch, arena, [&](int phase) { return phaseOf(branch, item.low, phase); }, channel,
        shared + (four * depthwiseThreads + owner) * 4, stride);
  }
}

// --- What cannot be read as it lies ----------------------------------------------------------------------------------

// P at most twice; a value is rounded as what is multiplied after each.
OCTCONV_DEVICE float preparedAt(const PrepareArgs& a, const char* arena, const Pixel& p, int tap, int channel) {
  const Extent& size = a.x.size;
  const int n = p.frame / a.y.size.t, t = (p.frame - n * a.y.size.t) * a.stride - a.padding + tap * a.dilation;
  if (t < 0 || t >= size.t || p.x < 0 || p.x >= a.columns) return 0;
  const int outer = a.pool == 2 ? 2 : 1, inner = a.pool > 0 ? 2 : 1;
  const int innerH = (size.h + inner - 1) / inner, innerW = (size.w + inner - 1) / inner;
  float sum = 0, count = 0;
#pragma unroll 1
  for (int yo = p.y * outer; yo < p.y * outer + outer && yo < innerH; yo++)
#pragma unroll 1
    for (int xo = p.x * outer; xo < p.x * outer + outer && xo < innerW; xo++, count++) {
      float innerSum = 0, innerCount = 0;
#pragma unroll 1
      for (int yi = yo * inner; yi < yo * inner + inner && yi < size.h; yi++)
#pragma unroll 1
        for (int xi = xo * inner; xi < xo * inner + inner && xi < size.w; xi++, innerCount++) {
          const float element = elementOf(arena, a.x, elementAt(a.x, {n * size.t + t, yi, xi}, channel));
          innerSum += roundedTo(a.dtype, activated(a.prologue, element, channel));
        }
      sum += roundedTo(a.dtype, innerSum / innerCount);
    }
  return sum / count;
}

}  // namespace

// Depthwise branches: an output channel is made of the input channel of the same number. Bound by memory. Five blocks
// at a time, or both rows of pixels in one step, spill.
OCTCONV_KERNEL void __launch_bounds__(depthwiseThreads, 4)
    octConvDepthwise(const __grid_constant__ OctConvArgs args, char* arena) {
  int block = blockIndex();
  const BranchArgs& branch = branchOf(args, block);
  if (branch.gated) return computeDepthwise<DType::f32, true>(branch, arena, block);
  switch (branch.source[0].x.dtype) {
    case DType::f16:
      return computeDepthwise<DType::f16, false>(branch, arena, block);
    case DType::bf16:
      return computeDepthwise<DType::bf16, false>(branch, arena, block);
    default:
      return computeDepthwise<DType::f32, false>(branch, arena, block);
  }
}

// 16 bytes of a pixel. What is left of its channels, and columns of zeros, hold zeros.
OCTCONV_KERNEL void __launch_bounds__(itemThreads, 4)
    octConvPrepare(const __grid_constant__ PrepareArgs a, char* arena) {
  const int64_t item = itemIndex();
  const int each = a.dtype == DType::f32 ? 4 : 8, pieces = a.y.pitch / each;
  const auto pixel = static_cast<unsigned>(item / pieces);
  Pixel p = pixelAt(pixel, a.n, a.y.size);
  if (p.frame < 0) return;
  p.x -= a.left;
  int channel = static_cast<int>(item - static_cast<int64_t>(pixel) * pieces) * each, tap = channel / a.x.channels;
  channel -= tap * a.x.channels;
  const auto next = [&] {
    const float value = tap < a.taps ? preparedAt(a, arena, p, tap, channel) : 0;
    if (++channel == a.x.channels) channel = 0, tap++;
    return value;
  };
  Words<4> y{};
#pragma unroll 1
  for (int i = 0; i < 4; i++) {
    const float value = next();
    y = {y.word[1], y.word[2], y.word[3], a.dtype == DType::f32 ? bitsOfFloat(value) : packed(a.dtype, value, next())};
  }
  reinterpret_cast<Words<4>*>(arena + a.y.at)[item] = y;
}

// With tiles of 128 pixels x 128 channels and smaller ones: two blocks fit on a multiprocessor, one before sm_80.
OCTCONV_KERNEL void __launch_bounds__(blockThreads, OCTCONV_SM80 ? 2 : 1)
    octConvF16(const __grid_constant__ OctConvArgs args, char* arena) {
  compute<F16>(args, arena);
}
// For several groups, with the tile of 256 x 32. In the kernels above mend() spills on sm_120.
OCTCONV_KERNEL void __launch_bounds__(blockThreads, OCTCONV_SM80 ? 2 : 1)
    octConvF16Grouped(const __grid_constant__ OctConvArgs args, char* arena) {
  computeAll<F16, groupedTile>(args, arena);
}
#if OCTCONV_SM80
OCTCONV_KERNEL void __launch_bounds__(blockThreads, 2)
    octConvBf16Grouped(const __grid_constant__ OctConvArgs args, char* arena) {
  computeAll<Bf16, groupedTile>(args, arena);
}
OCTCONV_KERNEL void __launch_bounds__(blockThreads, 2)
    octConvTf32Grouped(const __grid_constant__ OctConvArgs args, char* arena) {
  computeAll<Tf32, groupedTile>(args, arena);
}
OCTCONV_KERNEL void __launch_bounds__(blockThreads, 2)
    octConvBf16(const __grid_constant__ OctConvArgs args, char* arena) {
  compute<Bf16>(args, arena);
}
OCTCONV_KERNEL void __launch_bounds__(blockThreads, 2)
    octConvTf32(const __grid_constant__ OctConvArgs args, char* arena) {
  compute<Tf32>(args, arena);
}
// With tiles of 256 x 128: a quarter less to read for the same product. Left alone, nvcc takes 233 registers for sm_90.
OCTCONV_KERNEL void __maxnreg__(224) octConvF16Large(const __grid_constant__ OctConvArgs args, char* arena) {
  computeAll<F16, largestTile>(args, arena);
}
OCTCONV_KERNEL void __maxnreg__(224) octConvBf16Large(const __grid_constant__ OctConvArgs args, char* arena) {
  computeAll<Bf16, largestTile>(args, arena);
}
OCTCONV_KERNEL void __maxnreg__(224) octConvTf32Large(const __grid_constant__ OctConvArgs args, char* arena) {
  computeAll<Tf32, largestTile>(args, arena);
}
#endif

// The second step where blocks share tiles.
OCTCONV_KERNEL void __launch_bounds__(blockThreads, 2)
    octConvSums(const __grid_constant__ OctConvArgs args, char* arena) {
  int block = blockIndex();
  const BranchArgs& branch = branchOf(args, block, [](const BranchArgs& b) { return b.sumBlocks; });
  switch (branch.tile) {
    case 0:
      return addSplits<0>(branch, arena, block);
    case 1:
      return addSplits<1>(branch, arena, block);
    case 2:
      return addSplits<2>(branch, arena, block);
    case 3:
      return addSplits<3>(branch, arena, block);
    case largestTile:
      return addSplits<largestTile>(branch, arena, block);
  }
}

}  // namespace octconv::cuda
