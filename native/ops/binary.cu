// add, sub, mul and div on NVIDIA GPUs, see binary.cc.
#include "../cuda/items.h"
#include "../cuda/tensor.h"
#include "../cuda/walk.h"
#include "functions.h"

namespace octconv::cuda {
namespace {

struct BinaryArgs {
  TensorArgs x, y, z;
  WalkArgs<2> walk;  // through x and y
  Binary op;
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(itemThreads) binary(const __grid_constant__ BinaryArgs a, char* arena) {
  const int64_t i = itemIndex();
  if (i >= a.walk.items) return;
  int64_t at[2] = {};
  walk(a.walk, i, at);
  const float x = elementOf(arena, a.x, at[0]), y = elementOf(arena, a.y, at[1]);
  const float z = a.op == Binary::add ? x + y : a.op == Binary::sub ? x - y : a.op == Binary::mul ? x * y : x / y;
  setElement(arena, a.z, i, z);
}

}  // namespace octconv::cuda

#else
namespace octconv::cuda {
namespace {

template <Binary op>
Made make(const PlacedNode& placed) {
  const Node& node = placed.node;
  const auto sizes = sizesOf(node.out(0));
  const auto axis = [&](size_t a) {
    const auto step = [&](const Shape& s) { return sizesOf(s)[a] == 1 ? 0 : stepsOf(s)[a]; };
    return Walk<2>::Axis{sizes[a], {step(node.in(0)), step(node.in(1))}};
  };
  const Walk<2> walk({axis(0), axis(1), axis(2), axis(3), axis(4)});
  const BinaryArgs args{placed.input(0), placed.input(1), placed.output(0), argumentsOf(walk), op};
  return {{launchItems("binary", args.walk.items, args)}, "binary"};
}

const Registered<Kernels> kernels[] = {{"add", {make<Binary::add>, floats}},
                                       {"sub", {make<Binary::sub>, floats}},
                                       {"mul", {make<Binary::mul>, floats}},
                                       {"div", {make<Binary::div>, floats}}};

}  // namespace
}  // namespace octconv::cuda
#endif
