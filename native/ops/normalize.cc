// normalize: pictures u8 [N,T,H,W,C] to f32 of the same shape, y = (x * scale - mean[c]) / std[c], rounded once.
#include <algorithm>

#include "../cpu/kernel.h"

namespace octconv {
namespace {

std::vector<double> perChannel(const Node& node, const char* key) {
  std::vector<double> values;
  for (const Attr& value : node.attrs[key].list()) values.push_back(value.number());
  if (static_cast<int64_t>(values.size()) != node.in(0).c)
    fail("normalize: ", key, " has ", values.size(), " numbers for ", node.in(0).c, " channels of ", node.in(0));
  return values;
}

void check(const Node& node) {
  node.want(1, 1);
  if (node.inputs[0].dtype != DType::u8 || node.outputs[0].dtype != DType::f32)
    fail("normalize: got ", nameOf(node.inputs[0].dtype), " to ", nameOf(node.outputs[0].dtype), ", wanted u8 to f32");
  if (node.in(0) != node.out(0))
    fail("normalize: input ", node.in(0), " and output ", node.out(0), " must have one shape");
  perChannel(node, "mean"), perChannel(node, "std"), node.attrs["scale"].number();
}

auto valueOf(const Node& node) {
  return [scale = node.attrs["scale"].number(), mean = perChannel(node, "mean"), std = perChannel(node, "std")](
             int x, int64_t c) { return static_cast<float>((x * scale - mean[c]) / std[c]); };
}

Kernel slow(const Node& node, int) {
  const int64_t pixels = node.in(0).pixels(), channels = node.in(0).c;
  return {[=, value = valueOf(node)](Run& run) {
    for (int64_t i = 0; i < pixels; i++)
      for (int64_t c = 0; c < channels; c++)
        run.out<float>(0)[i * channels + c] = value(run.in<uint8_t>(0)[i * channels + c], c);
  }};
}

Kernel fast(const Node& node, int) {
  const int64_t pixels = node.in(0).pixels(), channels = node.in(0).c;
  const auto value = valueOf(node);
  // A byte has 256 values: one table per channel is as exact as the reference and as quick as memory.
  std::vector<float> table;
  for (int64_t c = 0; c < channels; c++)
    for (int x = 0; x < 256; x++) table.push_back(value(x, c));
  const int64_t parts = pieces(pixels, 1 << 14);
  return {[=, table = std::move(table)](Run& run) {
    run.parallel(parts, [&](int64_t task, char*) {
      const auto [begin, end] = piece(pixels, parts, task);
      const uint8_t* x = run.in<uint8_t>(0) + begin * channels;
      float* y = run.out<float>(0) + begin * channels;
      for (int64_t i = begin; i < end; i++)
        for (int64_t c = 0; c < channels; c++) *y++ = table[c * 256 + *x++];
    });
  }};
}

const Registered<Contract> contract{"normalize", {check, false}};
const Registered<Kernels<Reference>> onReference{"normalize", {slow, {DType::u8}}};
const Registered<Kernels<Cpu>> onCpu{"normalize", {fast, {DType::u8}}};

}  // namespace
}  // namespace octconv
