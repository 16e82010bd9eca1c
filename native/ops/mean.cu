// mean and globalAvgPool on NVIDIA GPUs. A block computes 32 channels of a position that is left, or one number where
// channels are summed up too: each thread adds up every fourth pixel, or every 128th number, then their sums become
// one; always in the same order.
#include "../cuda/means.h"

#if OCTCONV_KERNELS
#include "../cuda/sums.h"

namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(meansThreads) means(const __grid_constant__ MeansArgs a, char* arena) {
  const int parts = (a.channels + a.lanes - 1) / a.lanes, position = blockIndex() / parts;
  const int row = threadIndex() / a.lanes, lane = threadIndex() - row * a.lanes, together = meansThreads / a.lanes;
  const int channel = (blockIndex() - position * parts) * a.lanes + lane;
  int64_t first[1] = {channel};
  walk(a.left, position, first);
  LongSum sum;
  if (channel < a.channels)
    for (int64_t i = row; i < a.over.items; i += together) {
      int64_t at[1] = {first[0]};
      walk(a.over, i, at);
      sum.add(elementOf(arena, a.x, at[0]));
    }
  auto* const sums = reinterpret_cast<double*>(sharedMemory());
  double all = sum.total();
  sums[threadIndex()] = all;
  synchronize();
  if (row > 0 || channel >= a.channels) return;
  for (int i = 1; i < together; i++) all += sums[i * a.lanes + lane];
  reinterpret_cast<float*>(arena + a.y)[static_cast<int64_t>(position) * a.channels + channel] =
      static_cast<float>(all / static_cast<double>(a.over.items));
}

}  // namespace octconv::cuda

#else
namespace octconv::cuda {

Launch meansOf(const TensorType& type, int64_t x, int64_t y, const std::array<bool, 5>& over) {
  const Shape& s = type.shape;
  const auto sizes = sizesOf(s);
  std::array<int64_t, 5> steps = stepsOf({s.n, s.t, s.h, s.w, type.pitch()});
  const auto axis = [&](size_t a, bool summed) { return Walk<1>::Axis{over[a] == summed ? sizes[a] : 1, {steps[a]}}; };
  const Walk<1> left({axis(0, false), axis(1, false), axis(2, false), axis(3, false)});
  const Walk<1> summed({axis(0, true), axis(1, true), axis(2, true), axis(3, true), axis(4, true)});
  const MeansArgs args{
      tensorOf(type, x), y, argumentsOf(left), argumentsOf(summed), static_cast<int>(over[4] ? 1 : s.c),
      over[4] ? 1 : 32};
  const int64_t blocks = product(args.left.items, (args.channels + args.lanes - 1) / args.lanes);
  return launchOf("means", static_cast<unsigned>(intOf(blocks, "blocks")), meansThreads, meansThreads * sizeof(double),
                  args);
}

namespace {

Made globalAvgPool(const PlacedNode& placed) {
  return {{meansOf(placed.node.inputs[0], placed.inputs[0], placed.outputs[0])}, "means"};
}

Made mean(const PlacedNode& placed) {
  std::array<bool, 5> over{};
  for (const Attr& axis : placed.node.attrs["axes"].list()) over[axis.integer()] = true;
  return {{meansOf(placed.node.inputs[0], placed.inputs[0], placed.outputs[0], over)}, "means"};
}

const Registered<Kernels> kernels[] = {{"globalAvgPool", {globalAvgPool, floats, nullptr, nullptr, true}},
                                       {"mean", {mean, floats, nullptr, nullptr, true}}};

}  // namespace
}  // namespace octconv::cuda
#endif
