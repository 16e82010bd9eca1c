// resize on NVIDIA GPUs, to the bytes of the reference: two launches for the tables of weights, then two that resize an
// axis each, of all pictures.
#include "../cuda/items.h"
#include "resize.h"

namespace octconv::cuda {
namespace {

constexpr int resizeFractionBits = 22;

struct ResizeTableArgs {
  ResizeAxis axis;
  int64_t table;  // int32 [count][2 + pitch]: first, taps, weights; bytes from the arena's begin
};

// Rows of pixels become pixels of `axis`: y[outer][i][inner] = sum over taps of x[outer][first + tap][inner].
struct ResizeArgs {
  int64_t x, y, table;                   // bytes from the arena's begin
  int64_t pictures, xPicture, yPicture;  // bytes of one
  int64_t outer, count, inner;           // of y: bytes of which are neighbours
  int64_t xOuter, xStep;                 // bytes from one to the next
  int64_t pitch;                         // of the table
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(itemThreads) resizeTable(const __grid_constant__ ResizeTableArgs a, char* arena) {
  const int64_t i = itemIndex();
  if (i >= a.axis.count) return;
  int32_t* const row = reinterpret_cast<int32_t*>(arena + a.table) + i * (2 + a.axis.pitch);
  const ResizeAxis::Window w = a.axis.window(i);
  row[0] = static_cast<int32_t>(w.low - a.axis.start), row[1] = static_cast<int32_t>(w.high - w.low);
  a.axis.weigh(w, resizeFractionBits, [&](int64_t k, int32_t weight) { row[2 + k] = weight; });
}

OCTCONV_KERNEL void __launch_bounds__(itemThreads) resize(const __grid_constant__ ResizeArgs a, char* arena) {
  const int64_t item = itemIndex(), picture = item / a.yPicture, at = item - picture * a.yPicture;
  if (picture >= a.pictures) return;
  const int64_t column = at / a.inner, outer = column / a.count, i = column - outer * a.count;
  const int32_t* const row = reinterpret_cast<const int32_t*>(arena + a.table) + i * (2 + a.pitch);
  const auto* x = reinterpret_cast<const uint8_t*>(arena + a.x) + picture * a.xPicture + outer * a.xOuter +
                  row[0] * a.xStep + (at - column * a.inner);
  int32_t sum = 1 << (resizeFractionBits - 1);
#pragma unroll 1
  for (int k = 0; k < row[1]; k++, x += a.xStep) sum += *x * row[2 + k];
  sum >>= resizeFractionBits;
  reinterpret_cast<uint8_t*>(arena + a.y)[item] = static_cast<uint8_t>(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

}  // namespace octconv::cuda

#else
namespace octconv::cuda {
namespace {

Made make(const PlacedNode& placed) {
  const auto g = resizeGeometryOf(placed.node);
  Layout scratch;
  const auto reserve = [&](int64_t bytes) {
    return placed.scratch + static_cast<int64_t>(scratch.add(static_cast<size_t>(bytes)));
  };
  const auto tableOf = [&](const ResizeAxis& axis) {
    return reserve(product(axis.count, axis.pitch + 2, sizeof(int32_t)));
  };
  const ResizeTableArgs downTable{g.down, tableOf(g.down)}, acrossTable{g.across, tableOf(g.across)};
  const int64_t between = reserve(product(g.pictures, g.between())), x = placed.inputs[0] + g.start();
  const auto down = [&](int64_t from, int64_t picture, int64_t step, int64_t to, int64_t inner) {
    return ResizeArgs{from, to,          downTable.table, g.pictures, picture, g.outHeight * inner,
                      1,    g.outHeight, inner,           0,          step,    g.down.pitch};
  };
  const auto across = [&](int64_t from, int64_t picture, int64_t step, int64_t to, int64_t rows) {
    return ResizeArgs{from, to, acrossTable.table, g.pictures, picture, rows * g.outWidth * 3, rows, g.outWidth, 3,
                      step, 3,  g.across.pitch};
  };
  const int64_t row = g.width * 3, y = placed.outputs[0];
  const ResizeArgs first = g.downFirst ? down(x, g.pictureIn(), row, between, g.across.size * 3)
                                       : across(x, g.pictureIn(), row, between, g.down.size),
                   second = g.downFirst ? across(between, g.between(), g.across.size * 3, y, g.outHeight)
                                        : down(between, g.between(), g.outWidth * 3, y, g.outWidth * 3);
  Made made{{}, "resize", scratch.size()};
  for (const auto& table : {downTable, acrossTable})
    made.launches.push_back(launchItems("resizeTable", table.axis.count, table));
  for (const auto& pass : {first, second})
    made.launches.push_back(launchItems("resize", product(pass.pictures, pass.yPicture), pass));
  return made;
}

const Registered<Kernels> kernels{"resize", {make, {DType::u8}}};

}  // namespace
}  // namespace octconv::cuda
#endif
