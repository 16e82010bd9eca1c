// attention on tensor cores: a block of four warps computes 64 queries x 128 or 256 channels, a warp 16 queries. It
// goes over blocks of 64 keys: scores = q k^T, which become weights in registers, then sums += weights v. Where there
// are more channels than those, blocks compute the scores anew. Steps are copied into shared memory two steps ahead:
// 128 bytes of the rows of q and k, or 64 bytes of keys of the columns of v.
//
// The weights of a lane are its part of the left factor of the next product as they lie: for f16 and bf16 that of one
// product are two fragments of scores. For tf32, keys 0 2 4 6 1 3 5 7 of eight have places 0 to 7 in that product; v is
// written so. A launch before turns v around, writes zeros behind the keys, and rounds f32 to tf32 (to round in the
// main loop takes longer than its products); it writes q and k too where they cannot be copied as they lie.
#include "octconv/cuda.h"

namespace octconv::cuda {
namespace {

constexpr int attentionThreads = 128, attentionQueries = 64, attentionKeys = 64, attentionSlots = 3;
constexpr int scoreBytes = 2 * chunkBytes;                        // of a row of q or k in a step
constexpr int attentionSlot = 2 * attentionQueries * scoreBytes;  // q, then k; or up to 256 columns of v
constexpr int prepareThreads = 256, prepareTile = 32, preparePitch = prepareTile + 1;  // no two rows in one bank

// Rows of f16, bf16 or tf32 in the arena: in pieces of 16 bytes where they begin, and how far apart they are.
struct RowsArgs {
  uint32_t at, pitch;
};

struct AttentionArgs {
  RowsArgs q, k, v;  // v: [n][channel][key], keys up to a multiple of attentionKeys
  TensorArgs y;
  int queries, keys;  // of an n
  int depth;          // bytes of a row of q and k
  int columns;        // of a block
  int queryTiles, slices;
  float scale;  // of scores that are exponents of 2
};

struct PrepareRowsArgs {
  TensorArgs x;
  int64_t y;    // bytes from the arena's begin
  DType dtype;  // of y
  int rows;     // of an n
  bool turned;  // [n][channel][row], or [n][row][channel]
  int width;    // elements of a row of y: behind those of x lie zeros
  int rowTiles, columnTiles;
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
#include <math.h>

#include "../cuda/products.h"

namespace octconv::cuda {
namespace {

constexpr float minusInfinity = -__builtin_inff();

// Four pieces of 16 bytes of rows that are `apart` apart; zeros from row `end` on.
template <int apart>
OCTCONV_DEVICE void copyRows(char* to, const char* arena, const RowsArgs& rows, int row, int end, int piece) {
  Copy16 copies[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t at = rows.at + static_cast<uint32_t>(row + i * apart) * rows.pitch + static_cast<uint32_t>(piece);
    copies[i].begin(to + i * apart * chunkBytes, arena + int64_t{at} * 16, row + i * apart < end);
  }
#pragma unroll
  for (Copy16& copy : copies) copy.end();
}

// Brings one step after the other into shared memory, zeros behind the last one.
template <class Type, int columns>
struct AttentionLoader {
  static constexpr int keySteps = attentionKeys * Type::bytes / chunkBytes;  // of v

  const AttentionArgs& args;
  const char* arena;
  int n, firstQuery, firstColumn, firstKey = 0, step = 0;

  OCTCONV_DEVICE void copy(char* slot) {
    const AttentionArgs& a = args;
    const int scoreSteps = (a.depth + scoreBytes - 1) / scoreBytes;
    if (step < scoreSteps) {
      const int piece = threadIndex() % 8, row = threadIndex() / 8, at = step * (scoreBytes / 16) + piece;
      char* const to = slot + piece / 4 * (attentionQueries * chunkBytes) + swizzled(row, piece % 4);
      const bool valid = at * 16 < a.depth;
      copyRows<16>(to, arena, a.q, n * a.queries + firstQuery + row, valid ? (n + 1) * a.queries : 0, at);
      copyRows<16>(to + attentionQueries * scoreBytes, arena, a.k, n * a.keys + firstKey + row,
                   valid ? (n + 1) * a.keys : 0, at);
    } else {
      const int piece = threadIndex() % 4, row = threadIndex() / 4, channels = a.y.channels;
      const int at = (firstKey * Type::bytes + (step - scoreSteps) * chunkBytes) / 16 + piece;
#pragma unroll 1
      for (int column = 0; column < columns; column += 128)
        copyRows<32>(slot + swizzled(row, piece) + column * chunkBytes, arena, a.v,
                     n * channels + firstColumn + column + row, firstKey < a.keys ? (n + 1) * channels : 0, at);
    }
    commitCopies();
    if (++step == scoreSteps + keySteps) step = 0, firstKey += attentionKeys;
  }
};

// The right factors of two products, of columns `column` to 15 behind it.
OCTCONV_DEVICE void loadColumns(uint32_t (&b)[2][2], const char* rows, int column, int half) {
  const int lane = threadIndex() % 32;
  uint32_t both[4];
  loadMatrices(both, rows + swizzled(lane / 16 * 8 + lane % 8, half * 2 + lane / 8 % 2) + column * chunkBytes);
  b[0][0] = both[0], b[0][1] = both[1], b[1][0] = both[2], b[1][1] = both[3];
}

template <class Type>
OCTCONV_DEVICE void multiplyScores(float (&scores)[8][4], const char* slot) {
  const int lane = threadIndex() % 32, row = threadIndex() / 32 * 16 + lane % 16;
#pragma unroll
  for (int chunk = 0; chunk < 2; chunk++) {
    const char* const rows = slot + chunk * (attentionQueries * chunkBytes);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t a[4];
      loadMatrices(a, rows + swizzled(row, half * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t b[2][2];
        loadColumns(b, rows + attentionQueries * scoreBytes, j * 8, half);
        Type::multiply(scores[j], a, b[0]);
        Type::multiply(scores[j + 1], a, b[1]);
      }
    }
  }
}

// Scores of 16 queries and 64 keys, of which `keys` are there, become weights. Of two queries of this lane: the largest
// score so far, the sum of this lane's weights so far, and by what the sums so far are to be multiplied.
OCTCONV_DEVICE void weighScores(float (&scores)[8][4], float scale, int keys, float (&largest)[2], float (&totals)[2],
                                float (&factors)[2]) {
  const int first = threadIndex() % 4 * 2;
#pragma unroll
  for (int j = 0; j < 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) scores[j][i] = j * 8 + first + i % 2 < keys ? scores[j][i] * scale : minusInfinity;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float most = largest[r];
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int i = r * 2; i < r * 2 + 2; i++) most = scores[j][i] > most ? scores[j][i] : most;
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
      const float other = shuffleXor(most, mask);
      most = other > most ? other : most;
    }
    const float zero = most == minusInfinity ? 0 : most;  // then all weights so far are 0
    factors[r] = most == largest[r] ? 1 : exp2f(largest[r] - zero);
    largest[r] = most;
    totals[r] *= factors[r];
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int i = r * 2; i < r * 2 + 2; i++) totals[r] += scores[j][i] = exp2f(scores[j][i] - zero);
  }
}

// The weights as left factors of products.
template <class Type>
OCTCONV_DEVICE void factorsOf(uint32_t (&a)[2 * Type::bytes][4], const float (&weights)[8][4]) {
#pragma unroll
  for (int i = 0; i < 2 * Type::bytes; i++) {
    if constexpr (Type::bytes == 2) {
#pragma unroll
      for (int r = 0; r < 4; r++) {
        const float(&pair)[4] = weights[i * 2 + r / 2];
        a[i][r] = Type::pack(pair[r % 2 * 2], pair[r % 2 * 2 + 1]);
      }
    } else {
#pragma unroll
      for (int r = 0; r < 4; r++) a[i][r] = bitsOfFloat(weights[i][r % 2 * 2 + r / 2]);
      Type::round(a[i]);
    }
  }
}

OCTCONV_DEVICE void storeTwo(char* arena, const TensorArgs& y, int64_t at, int count, float first, float second) {
  const int bytes = y.dtype == DType::f32 ? 4 : 2;
  char* const to = arena + y.at + at * bytes;
  if (count < 2 || (y.at + at * bytes) % (2 * bytes) != 0) {
    if (count > 0) setElement(arena, y, at, first);
    if (count > 1) setElement(arena, y, at + 1, second);
  } else if (y.dtype == DType::f32) {
    *reinterpret_cast<Words<2>*>(to) = {bitsOfFloat(first), bitsOfFloat(second)};
  } else {
    *reinterpret_cast<uint32_t*>(to) = packed(y.dtype, first, second);
  }
}

template <class Type, int columns>
OCTCONV_DEVICE void attend(const AttentionArgs& a, char* arena) {
  using Loader = AttentionLoader<Type, columns>;
  constexpr int fragments = columns / 8;
  const int slice = blockIndex() % a.slices, tile = blockIndex() / a.slices % a.queryTiles,
            n = blockIndex() / a.slices / a.queryTiles;
  Loader loader{a, arena, n, tile * attentionQueries, slice * columns};
  int read = 0, fill = 0;
#pragma unroll 1
  for (; fill < (attentionSlots - 1) * attentionSlot; fill += attentionSlot) loader.copy(sharedMemory() + fill);
  const auto nextSlot = [&] {
    waitForCopies<attentionSlots - 2>();
    synchronize();
    loader.copy(sharedMemory() + fill);
    const char* const slot = sharedMemory() + read;
    fill = read;
    read = read + attentionSlot == attentionSlots * attentionSlot ? 0 : read + attentionSlot;
    return slot;
  };

  float sums[fragments][4] = {}, largest[2] = {minusInfinity, minusInfinity}, totals[2] = {};
#pragma unroll 1
  for (int key = 0; key < a.keys; key += attentionKeys) {
    float scores[8][4] = {};
#pragma unroll 1
    for (int byte = 0; byte < a.depth; byte += scoreBytes) multiplyScores<Type>(scores, nextSlot());
    float factors[2];
    weighScores(scores, a.scale, a.keys - key, largest, totals, factors);
    if (factors[0] != 1 || factors[1] != 1) {
#pragma unroll
      for (int j = 0; j < fragments; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[j][i] *= factors[i / 2];
    }
    uint32_t weights[2 * Type::bytes][4];
    factorsOf<Type>(weights, scores);
#pragma unroll
    for (int step = 0; step < Loader::keySteps; step++) {
      const char* const slot = nextSlot();
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int j = 0; j < fragments; j += 2) {
          uint32_t b[2][2];
          loadColumns(b, slot, j * 8, half);
          Type::multiply(sums[j], weights[step * 2 + half], b[0]);
          Type::multiply(sums[j + 1], weights[step * 2 + half], b[1]);
        }
      }
    }
  }
  waitForCopies<0>();

  const int lane = threadIndex() % 32;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float total = totals[r];
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) total += shuffleXor(total, mask);
    const int query = tile * attentionQueries + threadIndex() / 32 * 16 + r * 8 + lane / 4;
    if (query >= a.queries) continue;
    const float one = 1 / total;
    const int64_t pixel = (static_cast<int64_t>(n) * a.queries + query) * a.y.pitch;
#pragma unroll
    for (int j = 0; j < fragments; j++) {
      const int column = slice * columns + j * 8 + lane % 4 * 2;
      storeTwo(arena, a.y, pixel + column, a.y.channels - column, sums[j][r * 2] * one, sums[j][r * 2 + 1] * one);
    }
  }
}

template <class Type>
OCTCONV_DEVICE void attend(const AttentionArgs& a, char* arena) {
#if OCTCONV_SM80
  if (a.columns == 256) return attend<Type, 256>(a, arena);
#endif
  attend<Type, 128>(a, arena);
}

}  // namespace

OCTCONV_KERNEL void __maxnreg__(224) attentionF16(const __grid_constant__ AttentionArgs a, char* arena) {
  attend<F16>(a, arena);
}
#if OCTCONV_SM80
OCTCONV_KERNEL void __maxnreg__(224) attentionBf16(const __grid_constant__ AttentionArgs a, char* arena) {
  attend<Bf16>(a, arena);
}
OCTCONV_KERNEL void __maxnreg__(224) attentionTf32(const __grid_constant__ AttentionArgs a, char* arena) {
  attend<Tf32>(a, arena);
}
#endif

// A block writes a tile of rows x channels.
OCTCONV_KERNEL void __launch_bounds__(prepareThreads)
    attentionPrepare(const __grid_constant__ PrepareRowsArgs a, char* arena) {
  constexpr int together = prepareThreads / prepareTile;
  const int lane = threadIndex() % prepareTile, first = threadIndex() / prepareTile;
  const int columnTile = blockIndex() % a.columnTiles * prepareTile,
            rowTile = blockIndex() / a.columnTiles % a.rowTiles * prepareTile;
  const int64_t n = blockIndex() / a.columnTiles / a.rowTiles;
  auto* const tile = reinterpret_cast<float*>(sharedMemory());
  for (int i = first; i < prepareTile; i += together) {
    const int row = rowTile + i, channel = columnTile + lane;
    const bool inside = row < a.rows && channel < a.x.channels;
    tile[i * preparePitch + lane] = inside ? elementOf(arena, a.x, (n * a.rows + row) * a.x.pitch + channel) : 0;
  }
  synchronize();
  TensorArgs y{};
  y.at = a.y, y.dtype = a.dtype;
  const int rows = a.turned ? a.x.channels : a.rows;
  for (int i = first; i < prepareTile; i += together) {
    const int row = (a.turned ? columnTile : rowTile) + i, column = (a.turned ? rowTile : columnTile) + lane;
    const int key = a.dtype == DType::f32 ? lane - lane % 8 + lane % 4 * 2 + lane / 4 % 2 : lane;
    float value = a.turned ? tile[key * preparePitch + i] : tile[i * preparePitch + lane];
#if OCTCONV_SM80
    if (a.dtype == DType::f32) value = floatOfBits(roundToTf32(bitsOfFloat(value)));
#endif
    if (row < rows && column < a.width) setElement(arena, y, (n * rows + row) * a.width + column, value);
  }
}

}  // namespace octconv::cuda

#else
#include <algorithm>

#include "../core/memory.h"
#include "../cuda/kernel.h"

namespace octconv::cuda {
namespace {

int64_t roundUp(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// The type that is multiplied: that of the inputs, f32 if they differ.
DType computeOf(const PlacedNode& placed) {
  const auto& inputs = placed.node.inputs;
  const auto alike = [&](const TensorType& type) { return type.dtype == inputs[0].dtype; };
  const DType dtype = std::ranges::all_of(inputs, alike) ? inputs[0].dtype : DType::f32;
  const auto& known = placed.gpu.computes;
  if (std::ranges::find(known, dtype) == known.end())
    fail("attention: no kernel for ", nameOf(dtype), " on ", placed.gpu.about(), ", wanted ", nameOf(known.back()));
  return dtype;
}

RowsArgs rowsAt(int64_t at, int64_t rows, int64_t pitch) {
  atMost(int64_t{UINT32_MAX}, (at + product(rows, pitch)) / 16, "pieces of 16 bytes of a run's memory");
  return {static_cast<uint32_t>(at / 16), static_cast<uint32_t>(pitch / 16)};
}

Made make(const PlacedNode& placed) {
  const Shape &q = placed.node.in(0), &k = placed.node.in(1), &v = placed.node.in(2);
  const auto positions = [](const Shape& s) { return s.t * s.h * s.w; };
  const DType dtype = computeOf(placed);
  const auto bytes = static_cast<int64_t>(bytesOf(dtype));
  Made made;
  Layout scratch;
  const auto rowsOf = [&](size_t i, bool turned) -> RowsArgs {
    const TensorType& type = placed.node.inputs[i];
    const Shape& s = type.shape;
    if (!turned && dtype != DType::f32 && type.dtype == dtype && hasWholePieces(type, placed.inputs[i]))
      return rowsAt(placed.inputs[i], s.pixels(), type.pitch() * bytes);
    const int64_t width = turned ? roundUp(positions(s), attentionKeys) : roundUp(s.c, 16 / bytes);
    const int64_t rows = product(s.n, turned ? s.c : positions(s));
    const int64_t y = placed.scratch + static_cast<int64_t>(scratch.add(product(rows, width, bytes)));
    PrepareRowsArgs args{placed.input(i),      y, dtype, intOf(positions(s), "positions"), turned,
                         intOf(width, "keys"), 0, 0};
    const auto tiles = [](int64_t size) { return static_cast<int>((size + prepareTile - 1) / prepareTile); };
    args.rowTiles = tiles(turned ? width : positions(s)), args.columnTiles = tiles(turned ? s.c : width);
    const int blocks = intOf(product(s.n, args.rowTiles, args.columnTiles), "blocks");
    made.launches.push_back(launchOf("attentionPrepare", static_cast<unsigned>(blocks), prepareThreads,
                                     prepareTile * preparePitch * sizeof(float), args));
    return rowsAt(y, rows, width * bytes);
  };
  AttentionArgs args{};
  args.q = rowsOf(0, false), args.k = rowsOf(1, false), args.v = rowsOf(2, true);
  args.y = placed.output(0);
  args.queries = intOf(positions(q), "queries"), args.keys = intOf(positions(k), "keys");
  args.depth = intOf(roundUp(q.c * bytes, 16), "bytes of channels");
  args.columns = placed.gpu.capability < 80 || v.c <= 128 ? 128 : 256;  // wide ones leave sm_75 too few registers
  args.queryTiles = intOf((positions(q) + attentionQueries - 1) / attentionQueries, "blocks of queries");
  args.slices = static_cast<int>((v.c + args.columns - 1) / args.columns);
  args.scale = static_cast<float>(placed.node.attrs["scale"].number() * 1.4426950408889634);
  const int blocks = intOf(product(q.n, args.queryTiles, args.slices), "blocks");
  const std::string kernel = dtype == DType::f32   ? "attentionTf32"
                             : dtype == DType::f16 ? "attentionF16"
                                                   : "attentionBf16";
  Launch launch =
      launchOf(kernel, static_cast<unsigned>(blocks), attentionThreads, attentionSlots * attentionSlot, args);
  launch.tile = std::to_string(attentionQueries) + "x" + std::to_string(args.columns);
  const int64_t steps = product(blocks, roundUp(args.keys, attentionKeys) / attentionKeys),
                depth = roundUp(args.depth, scoreBytes);
  launch.multiplyAdds = product(steps, attentionQueries, attentionKeys, depth / bytes + args.columns);
  launch.operandBytes = product(steps, attentionKeys, 2 * depth + args.columns * bytes);
  made.launches.push_back(std::move(launch));
  made.algorithm = kernel + ", " + std::to_string(blocks) + " blocks";
  made.scratchBytes = scratch.size();
  return made;
}

const Registered<Kernels> kernels{"attention", {make, floats, nullptr, nullptr, true}};

}  // namespace
}  // namespace octconv::cuda
#endif
