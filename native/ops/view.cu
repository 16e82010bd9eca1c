// slice, transpose and reshape on NVIDIA GPUs: a thread moves one element, or up to 16 bytes of elements that lie
// together on both sides. What is written lies together; a transposition reads from all over.
#include "../cuda/items.h"
#include "../cuda/move.h"
#include "../cuda/units.h"

#if OCTCONV_KERNELS
namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(itemThreads) move(const __grid_constant__ MoveArgs a, char* arena) {
  const int64_t i = itemIndex();
  if (i >= a.walk.items) return;
  int64_t at[2] = {};
  walk(a.walk, i, at);
  byUnit(a.unit, [&](auto unit) {
    using Unit = decltype(unit);
    reinterpret_cast<Unit*>(arena + a.y)[at[1]] = reinterpret_cast<const Unit*>(arena + a.x)[at[0]];
  });
}

}  // namespace octconv::cuda

#else
namespace octconv::cuda {

Launch moveOf(int64_t bytes, int64_t x, int64_t y, const Walk<2>& walk) {
  Walk<2> units = walk;
  MoveArgs args{x + walk.start[0] * bytes, y + walk.start[1] * bytes, {}, static_cast<int>(bytes)};
  if (walk.inner.steps == Walk<2>::Offsets{1, 1}) {
    args.unit = unitOf({args.x, args.y, walk.inner.size * bytes});
    for (const auto& axis : walk.outer) args.unit = unitOf({args.unit, axis.steps[0] * bytes, axis.steps[1] * bytes});
    const int64_t together = args.unit / bytes;
    units.inner.size /= together;
    for (auto& axis : units.outer)
      for (int64_t& step : axis.steps) step /= together;
  }
  args.walk = argumentsOf(units);
  return launchItems("move", args.walk.items, args);
}

namespace {

std::array<int64_t, 5> numbersOf(const Node& node, const char* key) {
  std::array<int64_t, 5> numbers;
  for (size_t i = 0; i < 5; i++) numbers[i] = node.attrs[key].list()[i].integer();
  return numbers;
}

// To a dense output, along whose axes the input has these steps.
Made moved(const PlacedNode& placed, const std::array<int64_t, 5>& steps, int64_t start) {
  const auto sizes = sizesOf(placed.node.out(0)), to = stepsOf(placed.node.out(0));
  const auto axis = [&](size_t a) { return Walk<2>::Axis{sizes[a], {steps[a], to[a]}}; };
  Walk<2> walk({axis(0), axis(1), axis(2), axis(3), axis(4)});
  walk.start = {start, 0};
  const auto bytes = static_cast<int64_t>(bytesOf(placed.node.outputs[0].dtype));
  return {{moveOf(bytes, placed.inputs[0], placed.outputs[0], walk)}, "move"};
}

Made slice(const PlacedNode& placed) {
  const auto steps = stepsOf(placed.node.in(0)), starts = numbersOf(placed.node, "starts");
  int64_t start = 0;
  for (size_t i = 0; i < 5; i++) start += starts[i] * steps[i];
  return moved(placed, steps, start);
}

Made transpose(const PlacedNode& placed) {
  const auto steps = stepsOf(placed.node.in(0)), axes = numbersOf(placed.node, "axes");
  return moved(placed, {steps[axes[0]], steps[axes[1]], steps[axes[2]], steps[axes[3]], steps[axes[4]]}, 0);
}

Made reshape(const PlacedNode& placed) { return moved(placed, stepsOf(placed.node.out(0)), 0); }

const Registered<Kernels> kernels[] = {
    {"slice", {slice, elements}}, {"transpose", {transpose, elements}}, {"reshape", {reshape, elements}}};

}  // namespace
}  // namespace octconv::cuda
#endif
