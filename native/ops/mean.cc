// mean: of [N,T,H,W,C] over `axes`, some of 1 (T) to 4 (C), as what is left of the axes in their order. globalAvgPool:
// over T, H and W. f32, bf16 or u8 to f32.
//
// Sums in double, and the input is read once: the reference is the kernel.
#include "../cpu/floats.h"

namespace octconv {
namespace {

// Which axes are left, and the sizes of the input along them; 1 along the others.
struct Reduction {
  std::array<bool, 5> over{};
  Shape left;
  explicit Reduction(const Node& node) : left(node.in(0)) {
    int64_t* sizes[] = {&left.n, &left.t, &left.h, &left.w, &left.c};
    const auto reduce = [&](int64_t axis) {
      if (axis < 1 || axis > 4) fail(node.op, ": axis ", axis, ", wanted 1 to 4");
      over[axis] = true, *sizes[axis] = 1;
    };
    if (node.op == "globalAvgPool")
      for (const int64_t axis : {1, 2, 3}) reduce(axis);
    else
      for (const Attr& axis : node.attrs["axes"].list()) reduce(axis.integer());
  }
};

void check(const Node& node) {
  node.want(1, 1);
  if (node.outputs[0].dtype != DType::f32) fail(node.op, ": output ", nameOf(node.outputs[0].dtype), ", wanted f32");
  const Shape left = Reduction(node).left, o = node.out(0);
  if (o.n != left.n || o.elements() != left.elements())
    fail(node.op, ": output ", o, " of input ", node.in(0), ", wanted the elements of ", left);
}

// A task: at most 64 channels of one position that is left.
Kernel make(const Node& node, int) {
  const Reduction reduction(node);
  const Shape s = node.in(0), left = reduction.left;
  const auto count = static_cast<double>(s.elements() / left.elements());
  const int64_t parts = pieces(s.c, 64), perPosition = reduction.over[4] ? 1 : parts;
  return {[=](Run& run) {
    run.parallel(left.pixels() * perPosition, [&](int64_t task, char*) {
      const int64_t p = task / perPosition;
      const auto [begin, end] = reduction.over[4] ? Range{0, s.c} : piece(s.c, parts, task % parts);
      const auto along = [&](int axis, int64_t at, int64_t size) {
        return reduction.over[axis] ? Range{0, size} : Range{at, at + 1};
      };
      const Range ts = along(1, p / (left.w * left.h) % left.t, s.t), ys = along(2, p / left.w % left.h, s.h),
                  xs = along(3, p % left.w, s.w);
      const int64_t n = p / (left.w * left.h * left.t);
      double sums[128] = {};
      for (int64_t t = ts.begin; t < ts.end; t++)
        for (int64_t y = ys.begin; y < ys.end; y++)
          for (int64_t x = xs.begin; x < xs.end; x++)
            for (int64_t c = begin; c < end; c++)
              sums[reduction.over[4] ? 0 : c - begin] +=
                  valueAt(run.inputs[0], node.inputs[0], (((n * s.t + t) * s.h + y) * s.w + x) * s.c + c);
      for (int64_t c = reduction.over[4] ? 0 : begin; c < (reduction.over[4] ? 1 : end); c++)
        run.out<float>(0)[p * left.c + c] = static_cast<float>(sums[reduction.over[4] ? 0 : c - begin] / count);
    });
  }};
}

const Registered<Contract> contracts[] = {{"mean", {check, false}}, {"globalAvgPool", {check, false}}};
const Registered<Kernels<Reference>> onReference[] = {{"mean", {make, anyFloats}},
                                                      {"globalAvgPool", {make, anyFloats}}};
const Registered<Kernels<Cpu>> onCpu[] = {{"mean", {make, anyFloats}}, {"globalAvgPool", {make, anyFloats}}};

}  // namespace
}  // namespace octconv
