// concat: inputs [N,T,H,W,Ci] side by side along the channels -> [N,T,H,W,sum of Ci]. f32, f16, bf16 or u8 of one
// scale; only moves data, the same for every device.
#include <algorithm>

#include "../cpu/floats.h"

namespace octconv {
namespace {

void check(const Node& node) {
  node.want(std::max<size_t>(node.inputs.size(), 1), 1);
  const Shape o = node.out(0);
  int64_t channels = 0;
  for (size_t i = 0; i < node.inputs.size(); i++) {
    Shape wanted = o;
    wanted.c = node.in(i).c;
    if (node.in(i) != wanted) fail("concat: input ", i, " is ", node.in(i), ", wanted ", wanted);
    channels = sum(channels, node.in(i).c);
  }
  if (channels != o.c) fail("concat: output ", o, " of inputs with ", channels, " channels");
}

Kernel make(const Node& node, int) {
  const Shape o = node.out(0);
  const auto bytes = static_cast<int64_t>(bytesOf(node.outputs[0].dtype));
  const int64_t parts = pieces(o.pixels(), 1 + (1 << 16) / o.c);
  return {[=](Run& run) {
    run.parallel(parts, [&](int64_t task, char*) {
      const auto [begin, end] = piece(o.pixels(), parts, task);
      for (int64_t p = begin; p < end; p++) {
        char* to = run.out<char>(0) + p * node.outputs[0].pitch() * bytes;
        for (size_t i = 0; i < node.inputs.size(); i++)
          to = std::copy_n(run.in<char>(i) + p * node.inputs[i].pitch() * bytes, node.in(i).c * bytes, to);
      }
    });
  }};
}

const Registered<Contract> contract{"concat", {check}};
const Registered<Kernels<Reference>> onReference{"concat", pitched<Reference>(make, anyElements)};
const Registered<Kernels<Cpu>> onCpu{"concat", pitched<Cpu>(make, anyElements)};

}  // namespace
}  // namespace octconv
