// concat on NVIDIA GPUs: a launch for each input. The kernel is in view.cu.
#include "../cuda/move.h"

#if !OCTCONV_KERNELS
namespace octconv::cuda {
namespace {

Made make(const PlacedNode& placed) {
  const Node& node = placed.node;
  const auto bytes = static_cast<int64_t>(bytesOf(node.outputs[0].dtype));
  Made made{{}, "move"};
  int64_t first = 0;
  for (size_t i = 0; i < node.inputs.size(); first += node.in(i).c, i++) {
    const TensorType &from = node.inputs[i], &to = node.outputs[0];
    Walk<2> walk({{from.shape.pixels(), {from.pitch(), to.pitch()}}, {from.shape.c, {1, 1}}});
    walk.start = {0, first};
    made.launches.push_back(moveOf(bytes, placed.inputs[i], placed.outputs[0], walk));
  }
  return made;
}

const Registered<Kernels> kernels{"concat", {make, elements, nullptr, nullptr, true}};

}  // namespace
}  // namespace octconv::cuda
#endif
