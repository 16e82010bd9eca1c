// Functions of one value on NVIDIA GPUs, see unary.cc.
#include "../cuda/items.h"
#include "../cuda/tensor.h"
#include "functions.h"

namespace octconv::cuda {
namespace {

struct UnaryArgs {
  TensorArgs x, y;
  int64_t elements;
  Unary function;
  float slope;
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
#include "../cuda/functions.h"

namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(itemThreads) unary(const __grid_constant__ UnaryArgs a, char* arena) {
  const int64_t i = itemIndex();
  if (i < a.elements) setElement(arena, a.y, i, valueOf(a.function, a.slope, elementOf(arena, a.x, i)));
}

}  // namespace octconv::cuda

#else
#include "unary.h"

namespace octconv::cuda {
namespace {

Made make(const PlacedNode& placed) {
  const Node& node = placed.node;
  const UnaryArgs args{placed.input(0), placed.output(0), node.in(0).elements(), unaryOf(node.op.c_str())->op,
                       static_cast<float>(node.attrs.number("slope", 0))};
  return {{launchItems("unary", args.elements, args)}, "unary"};
}

const bool registered = [] {
  for (const char* op : {"relu", "relu6", "leakyRelu", "sigmoid", "silu", "hardSigmoid", "hardSwish", "gelu"})
    Registered<Kernels>(op, {make, floats});
  return true;
}();

}  // namespace
}  // namespace octconv::cuda
#endif
