// interpolate on NVIDIA GPUs, see interpolate.cc. Places are computed in integers; only the weights are rounded.
#include "../cuda/items.h"
#include "../cuda/tensor.h"

namespace octconv::cuda {
namespace {

struct InterpolateArgs {
  TensorArgs x, y;
  int n;
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
namespace octconv::cuda {
namespace {

// Between which two pixels of an axis output pixel `i` lies, and how much each counts.
struct Between {
  int first, second;
  float before, after;

  OCTCONV_DEVICE Between(int i, int from, int to) {
    const int64_t whole = 2 * static_cast<int64_t>(to), place = (2 * static_cast<int64_t>(i) + 1) * from - to;
    const int64_t inside = place < 0 ? 0 : place;  // in parts of a pixel, `whole` of them
    first = static_cast<int>(inside / whole);
    second = first + 1 < from ? first + 1 : first;
    const int64_t beyond = inside - first * whole;
    before = static_cast<float>(whole - beyond) / static_cast<float>(whole);
    after = static_cast<float>(beyond) / static_cast<float>(whole);
  }
};

}  // namespace

OCTCONV_KERNEL void __launch_bounds__(itemThreads) interpolate(const __grid_constant__ InterpolateArgs a, char* arena) {
  const int64_t i = itemIndex(), index = i / a.y.channels;
  const int channel = static_cast<int>(i - index * a.y.channels);
  const Pixel p = pixelAt(static_cast<unsigned>(index), a.n, a.y.size);
  if (p.frame < 0) return;
  const Between h(p.y, a.x.size.h, a.y.size.h), w(p.x, a.x.size.w, a.y.size.w);
  const auto at = [&](int y, int x) { return elementOf(arena, a.x, elementAt(a.x, {p.frame, y, x}, channel)); };
  const float top = at(h.first, w.first) * w.before + at(h.first, w.second) * w.after;
  const float down = at(h.second, w.first) * w.before + at(h.second, w.second) * w.after;
  setElement(arena, a.y, i, top * h.before + down * h.after);
}

}  // namespace octconv::cuda

#else
namespace octconv::cuda {
namespace {

Made make(const PlacedNode& placed) {
  const Shape& y = placed.node.out(0);
  const InterpolateArgs args{placed.input(0), placed.output(0), intOf(y.n, "images")};
  return {{launchItems("interpolate", y.elements(), args)}, "interpolate"};
}

const Registered<Kernels> kernels{"interpolate", {make, floats}};

}  // namespace
}  // namespace octconv::cuda
#endif
