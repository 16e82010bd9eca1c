// slice: from `starts` on along each axis, as much as the output holds. transpose: axis i of the output is axis axes[i]
// of the input. reshape: the same elements in their order. f32, f16, bf16 or u8; they only move data, the same for
// every device.
#include "../cpu/floats.h"
#include "../cpu/walk.h"

namespace octconv {
namespace {

std::array<int64_t, 5> axesOf(const Node& node, const char* key) {
  const auto& list = node.attrs[key].list();
  if (list.size() != 5) fail(node.op, ": ", key, " has ", list.size(), " numbers, wanted 5");
  std::array<int64_t, 5> axes;
  for (size_t i = 0; i < 5; i++) axes[i] = list[i].integer();
  return axes;
}

void checkSlice(const Node& node) {
  node.want(1, 1);
  const auto starts = axesOf(node, "starts"), x = sizesOf(node.in(0)), y = sizesOf(node.out(0));
  for (size_t i = 0; i < 5; i++)
    if (starts[i] < 0 || starts[i] > x[i] || y[i] > x[i] - starts[i])
      fail("slice: output ", node.out(0), " from ", starts[i], " along axis ", i, " is not inside of input ",
           node.in(0));
}

void checkTranspose(const Node& node) {
  node.want(1, 1);
  const auto axes = axesOf(node, "axes"), x = sizesOf(node.in(0)), y = sizesOf(node.out(0));
  std::array<bool, 5> seen{};
  for (size_t i = 0; i < 5; i++) {
    if (axes[i] < 0 || axes[i] > 4 || std::exchange(seen[axes[i]], true))
      fail("transpose: axis ", axes[i], ", wanted each of 0 to 4 once");
    if (y[i] != x[axes[i]]) fail("transpose: output ", node.out(0), " of input ", node.in(0), " does not fit the axes");
  }
}

void checkReshape(const Node& node) {
  node.want(1, 1);
  if (node.in(0).elements() != node.out(0).elements())
    fail("reshape: output ", node.out(0), " of input ", node.in(0), ", wanted as many elements");
}

Kernel copy(const Node& node, const std::array<int64_t, 5>& steps, int64_t start) {
  const auto y = sizesOf(node.out(0));
  Walk<1> walk({{y[0], {steps[0]}}, {y[1], {steps[1]}}, {y[2], {steps[2]}}, {y[3], {steps[3]}}, {y[4], {steps[4]}}});
  walk.start = {start};
  return {[=, dtype = node.outputs[0].dtype](Run& run) {
    const int64_t step = walk.inner.steps[0];
    bySize(dtype, [&](auto element) {
      using Element = decltype(element);
      eachTile(run, walk, [&](const auto& from, int64_t to, int64_t count, char*) {
        const Element* x = run.in<Element>(0) + from[0];
        Element* y = run.out<Element>(0) + to;
        if (step == 1)
          std::copy_n(x, count, y);
        else
          for (int64_t i = 0; i < count; i++) y[i] = x[i * step];
      });
    });
  }};
}

Kernel slice(const Node& node, int) {
  const auto steps = stepsOf(node.in(0)), starts = axesOf(node, "starts");
  int64_t start = 0;
  for (size_t i = 0; i < 5; i++) start += starts[i] * steps[i];
  return copy(node, steps, start);
}

Kernel transpose(const Node& node, int) {
  const auto steps = stepsOf(node.in(0)), axes = axesOf(node, "axes");
  return copy(node, {steps[axes[0]], steps[axes[1]], steps[axes[2]], steps[axes[3]], steps[axes[4]]}, 0);
}

Kernel reshape(const Node& node, int) { return copy(node, stepsOf(node.out(0)), 0); }

const Registered<Contract> contracts[] = {
    {"slice", {checkSlice}}, {"transpose", {checkTranspose}}, {"reshape", {checkReshape}}};
const Registered<Kernels<Reference>> onReference[] = {
    {"slice", {slice, anyElements}}, {"transpose", {transpose, anyElements}}, {"reshape", {reshape, anyElements}}};
const Registered<Kernels<Cpu>> onCpu[] = {
    {"slice", {slice, anyElements}}, {"transpose", {transpose, anyElements}}, {"reshape", {reshape, anyElements}}};

}  // namespace
}  // namespace octconv
