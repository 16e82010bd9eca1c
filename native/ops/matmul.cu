// matmul on NVIDIA GPUs, in f32: a block computes 32 x 32 numbers of a product, from pieces of both matrices in shared
// memory. Without tensor cores: their tf32 has 10 bits, and this op promises f32.
#include "../cuda/walk.h"

namespace octconv::cuda {
namespace {

constexpr int matmulThreads = 256, matmulTile = 32;

struct MatmulArgs {
  int64_t x, y, z;       // bytes from the arena's begin
  WalkArgs<2> matrices;  // of x and y
  int rows, inner, columns, rowTiles, columnTiles;
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(matmulThreads) matmul(const __grid_constant__ MatmulArgs a, char* arena) {
  constexpr int tile = matmulTile, together = matmulThreads / tile, each = tile / together;
  constexpr int pitch = tile + 1;  // no two rows in one bank
  const int column = threadIndex() % tile, row = threadIndex() / tile;
  const int perMatrix = a.rowTiles * a.columnTiles, matrix = blockIndex() / perMatrix,
            within = blockIndex() - matrix * perMatrix;
  const int firstRow = within / a.columnTiles * tile, firstColumn = within % a.columnTiles * tile;
  int64_t at[2] = {};
  walk(a.matrices, matrix, at);
  const float* const x = reinterpret_cast<const float*>(arena + a.x) + at[0];
  const float* const y = reinterpret_cast<const float*>(arena + a.y) + at[1];
  auto* const xs = reinterpret_cast<float*>(sharedMemory());
  float* const ys = xs + tile * pitch;

  float sums[each] = {};
#pragma unroll 1
  for (int k = 0; k < a.inner; k += tile) {
#pragma unroll
    for (int i = 0; i < each; i++) {
      const int r = row + i * together, xRow = firstRow + r, yColumn = firstColumn + column;
      xs[r * pitch + column] =
          xRow < a.rows && k + column < a.inner ? x[static_cast<int64_t>(xRow) * a.inner + k + column] : 0;
      ys[r * pitch + column] =
          k + r < a.inner && yColumn < a.columns ? y[static_cast<int64_t>(k + r) * a.columns + yColumn] : 0;
    }
    synchronize();
#pragma unroll
    for (int j = 0; j < tile; j++)
#pragma unroll
      for (int i = 0; i < each; i++) sums[i] += xs[(row + i * together) * pitch + j] * ys[j * pitch + column];
    synchronize();
  }
  if (firstColumn + column >= a.columns) return;
  float* const z = reinterpret_cast<float*>(arena + a.z) + static_cast<int64_t>(matrix) * a.rows * a.columns;
#pragma unroll
  for (int i = 0; i < each; i++) {
    const int r = firstRow + row + i * together;
    if (r < a.rows) z[static_cast<int64_t>(r) * a.columns + firstColumn + column] = sums[i];
  }
}

}  // namespace octconv::cuda

#else
#include "../cuda/kernel.h"

namespace octconv::cuda {
namespace {

Made make(const PlacedNode& placed) {
  const Shape &x = placed.node.in(0), &y = placed.node.in(1), &z = placed.node.out(0);
  const auto axis = [&](size_t a) {
    const auto step = [&](const Shape& s) { return sizesOf(s)[a] == 1 ? 0 : stepsOf(s)[a]; };
    return Walk<2>::Axis{sizesOf(z)[a], {step(x), step(y)}};
  };
  const auto tiles = [](int64_t size) { return static_cast<int>((size + matmulTile - 1) / matmulTile); };
  const MatmulArgs args{placed.inputs[0],
                        placed.inputs[1],
                        placed.outputs[0],
                        argumentsOf(Walk<2>({axis(0), axis(1), axis(2)})),
                        intOf(z.w, "rows"),
                        intOf(x.c, "columns"),
                        intOf(z.c, "columns"),
                        tiles(z.w),
                        tiles(z.c)};
  const int64_t blocks = product(args.matrices.items, args.rowTiles, args.columnTiles);
  return {{launchOf("matmul", static_cast<unsigned>(intOf(blocks, "blocks")), matmulThreads,
                    2 * matmulTile * (matmulTile + 1) * sizeof(float), args)},
          "matmul"};
}

const Registered<Kernels> kernels{"matmul", {make}};

}  // namespace
}  // namespace octconv::cuda
#endif
