// mean: of [N,T,H,W,C] over `axes`, some of 1 (T) to 4 (C), as what is left of the axes in their order. globalAvgPool:
// over T, H and W. f32, f16, bf16 or u8 to f32.
//
// The reference sums in double, the kernel some pixels in f32 and these sums in double.
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

constexpr int64_t mostChannels = 64;  // of a task

// A task: some channels of one position that is left. add(run, sums, pixel, count, first, channels) adds up so many
// channels of pixels that lie together.
template <class AddPixels>
Kernel make(const Node& node, AddPixels add) {
  const Reduction reduction(node);
  const Shape s = node.in(0), left = reduction.left;
  const auto count = static_cast<double>(s.elements() / left.elements());
  const int64_t parts = (s.c + mostChannels - 1) / mostChannels, perPosition = reduction.over[4] ? 1 : parts;
  return {[=](Run& run) {
    run.parallel(left.pixels() * perPosition, [&](int64_t task, char*) {
      const int64_t p = task / perPosition, n = p / (left.w * left.h * left.t);
      const auto along = [&](int axis, int64_t at, int64_t size) {
        return reduction.over[axis] ? Range{0, size} : Range{at, at + 1};
      };
      const Range ts = along(1, p / (left.w * left.h) % left.t, s.t), ys = along(2, p / left.w % left.h, s.h),
                  xs = along(3, p % left.w, s.w);
      double all = 0;
      for (int64_t part = reduction.over[4] ? 0 : task % parts; part < parts; part++) {
        const auto [begin, end] = piece(s.c, parts, part);
        double sums[mostChannels] = {};
        for (int64_t t = ts.begin; t < ts.end; t++)
          for (int64_t y = ys.begin; y < ys.end; y++)
            add(run, sums, ((n * s.t + t) * s.h + y) * s.w + xs.begin, xs.end - xs.begin, begin, end - begin);
        float* to = run.out<float>(0) + p * left.c + begin;
        for (int64_t c = 0; c < end - begin; c++)
          if (reduction.over[4])
            all += sums[c];
          else
            to[c] = static_cast<float>(sums[c] / count);
        if (!reduction.over[4]) return;
      }
      run.out<float>(0)[p] = static_cast<float>(all / count);
    });
  }};
}

Kernel slow(const Node& node, int) {
  return make(node, [type = node.inputs[0]](const Run& run, double* sums, int64_t pixel, int64_t count, int64_t first,
                                            int64_t channels) {
    for (int64_t p = pixel; p < pixel + count; p++)
      for (int64_t c = 0; c < channels; c++) sums[c] += valueAt(run.inputs[0], type, p * type.shape.c + first + c);
  });
}

Kernel fast(const Node& node, int) {
  return make(node, [x = Floats(node.inputs[0])](const Run& run, double* sums, int64_t pixel, int64_t count,
                                                 int64_t first, int64_t channels) {
    const int64_t pitch = x.type.shape.c;
    addPixels(x.elements(run.inputs[0], pixel * pitch + first), pitch, count, channels, sums);
  });
}

const Registered<Contract> contracts[] = {{"mean", {check, false}}, {"globalAvgPool", {check, false}}};
const Registered<Kernels<Reference>> onReference[] = {{"mean", {slow, anyElements}},
                                                      {"globalAvgPool", {slow, anyElements}}};
const Registered<Kernels<Cpu>> onCpu[] = {{"mean", {fast, anyFloats}}, {"globalAvgPool", {fast, anyFloats}}};

}  // namespace
}  // namespace octconv
