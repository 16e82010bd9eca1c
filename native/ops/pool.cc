// maxPool, avgPool: windows over T, H and W of [N,T,H,W,C].
//
// Attributes as in PyTorch: kernel, stride, padding [t,h,w], ceilMode (the last window must start inside the input or
// its left padding), countIncludePad (avgPool). Padding never wins a maximum, a NaN does. maxPool may have a second
// output, P of the first (2x2 average, stride 2), for the octave convolution behind it: the rows are still in the
// cache. maxPool takes f32, f16, bf16 or u8 and gives the same type; avgPool takes and gives any of them, and sums in
// f32, of large windows as mean.cc does.
#include "../cpu/levels.h"
#include "../cpu/rows.h"
#include "../cpu/vec.h"

OCTCONV_DECLARE(void largestOf(DType dtype, const char* const* x, int64_t count, char* y, ptrdiff_t channels))
OCTCONV_DECLARE(void addInto(float* y, const float* x, ptrdiff_t count))
OCTCONV_DECLARE(void scaleBy(float* y, float factor, ptrdiff_t count))

namespace octconv::OCTCONV_LEVEL {

OCTCONV_INLINE Vec larger(Vec a, Vec b) { return a >= b || a != a ? a : b; }  // or the one that is a NaN
OCTCONV_INLINE Shorts larger(Shorts a, Shorts b) { return a >= b ? a : b; }

template <class T>
static void largest(const char* const* x, int64_t count, char* y, ptrdiff_t channels) {
  for (ptrdiff_t c = 0; c < channels; c += elements<T>) {
    const int wanted = channels - c < elements<T> ? static_cast<int>(channels - c) : elements<T>;
    const auto at = [&](int64_t i) { return widened(reinterpret_cast<const T*>(x[i]) + c, wanted); };
    auto most = at(0);
    for (int64_t i = 1; i < count; i++) most = larger(most, at(i));
    narrow(reinterpret_cast<T*>(y) + c, most, wanted);
  }
}

void largestOf(DType dtype, const char* const* x, int64_t count, char* y, ptrdiff_t channels) {
  if (dtype == DType::f32) largest<float>(x, count, y, channels);
  if (dtype == DType::bf16) largest<BFloat16>(x, count, y, channels);
  if (dtype == DType::u8) largest<uint8_t>(x, count, y, channels);
}

void addInto(float* y, const float* x, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i++) y[i] += x[i];
}

void scaleBy(float* y, float factor, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i++) y[i] *= factor;
}

}  // namespace octconv::OCTCONV_LEVEL

#if OCTCONV_MAIN
#include <cmath>

#include "../cpu/floats.h"

namespace octconv {
namespace {

struct Window {
  Size3 kernel, stride, padding;
  bool ceilMode, countIncludePad, average;
};

// Output size along one axis, PyTorch's rule.
int64_t pooledSize(int64_t in, int64_t kernel, int64_t stride, int64_t padding, bool ceilMode) {
  const int64_t room = in + 2 * padding - kernel + (ceilMode ? stride - 1 : 0);  // in ceil mode a window may stick out
  if (room < 0) return 0;
  const int64_t size = room / stride + 1;
  return ceilMode && (size - 1) * stride >= in + padding ? size - 1 : size;
}

// What of a window along one axis lies inside, and how many positions count for the mean.
struct Reach {
  int64_t begin, end, counted;
  Reach(int64_t at, int64_t in, int64_t kernel, int64_t stride, int64_t padding, bool countPad) {
    const int64_t first = at * stride - padding, last = std::min(first + kernel, in + padding);
    begin = std::max<int64_t>(first, 0), end = std::min(last, in);
    counted = countPad ? last - first : end - begin;
  }
};

Window windowOf(const Node& node) {
  const Attr& a = node.attrs;
  const Window w{Size3(a["kernel"]), Size3(a["stride"]),        Size3(a["padding"]),
                 a.flag("ceilMode"), a.flag("countIncludePad"), node.op == "avgPool"};
  for (const auto& [k, s, p] :
       {std::array{w.kernel.t, w.stride.t, w.padding.t}, std::array{w.kernel.h, w.stride.h, w.padding.h},
        std::array{w.kernel.w, w.stride.w, w.padding.w}})
    if (k < 1 || s < 1 || p < 0 || 2 * p > k)
      fail(node.op, ": kernel ", k, ", stride ", s, ", padding ", p,
           ", wanted positive sizes and a padding of at most half the kernel");
  w.kernel.product();  // what counts for a mean is at most this
  return w;
}

void check(const Node& node) {
  const Window w = windowOf(node);
  node.want(1, !w.average && node.outputs.size() == 2 ? 2 : 1);
  const Shape x = node.in(0);
  const Shape y{x.n, pooledSize(x.t, w.kernel.t, w.stride.t, w.padding.t, w.ceilMode),
                pooledSize(x.h, w.kernel.h, w.stride.h, w.padding.h, w.ceilMode),
                pooledSize(x.w, w.kernel.w, w.stride.w, w.padding.w, w.ceilMode), x.c};
  if (node.out(0) != y) fail(node.op, ": output ", node.out(0), " of input ", x, ", wanted ", y);
  if (node.outputs.size() == 2 && node.out(1) != Shape{y.n, y.t, half(y.h), half(y.w), y.c})
    fail(node.op, ": pooled output ", node.out(1), " must be half of ", y);
}

// Visits the inputs of output pixel (n, t, y, x), those of a row together: visit(first pixel of the input, pixels);
// gives the number that counts.
template <class F>
int64_t eachRow(const Shape& s, const Window& w, int64_t n, int64_t t, int64_t y, int64_t x, F&& visit) {
  const Reach rt(t, s.t, w.kernel.t, w.stride.t, w.padding.t, w.countIncludePad),
      rh(y, s.h, w.kernel.h, w.stride.h, w.padding.h, w.countIncludePad),
      rw(x, s.w, w.kernel.w, w.stride.w, w.padding.w, w.countIncludePad);
  for (int64_t ti = rt.begin; ti < rt.end; ti++)
    for (int64_t yi = rh.begin; yi < rh.end; yi++)
      visit(((n * s.t + ti) * s.h + yi) * s.w + rw.begin, rw.end - rw.begin);
  return rt.counted * rh.counted * rw.counted;
}

// Visits them one by one: visit(pixel of the input).
template <class F>
int64_t eachInput(const Shape& s, const Window& w, int64_t n, int64_t t, int64_t y, int64_t x, F&& visit) {
  return eachRow(s, w, n, t, y, x, [&](int64_t first, int64_t pixels) {
    for (int64_t p = first; p < first + pixels; p++) visit(p);
  });
}

void referencePool(const Node& node, Run& run) {
  const Window w = windowOf(node);
  const Shape s = node.in(0), o = node.out(0);
  for (int64_t p = 0; p < o.pixels(); p++)
    for (int64_t c = 0; c < o.c; c++) {
      double sum = 0;
      float largest = -INFINITY;
      const int64_t count =
          eachInput(s, w, p / (o.w * o.h * o.t), p / (o.w * o.h) % o.t, p / o.w % o.h, p % o.w, [&](int64_t at) {
            const float x = valueAt(run.inputs[0], node.inputs[0], at * s.c + c);
            sum += x;
            if (x > largest || std::isnan(x)) largest = x;
          });
      setValue(run.outputs[0], node.outputs[0], p * o.c + c,
               w.average ? static_cast<float>(sum / static_cast<double>(count)) : largest);
    }
  if (node.outputs.size() < 2) return;
  const auto value = [&](int64_t i) { return valueAt(run.outputs[0], node.outputs[0], i); };
  for (int64_t p = 0; p < node.out(1).pixels(); p++)
    for (int64_t c = 0; c < o.c; c++)
      setValue(run.outputs[1], node.outputs[1], p * o.c + c,
               static_cast<float>(pooledAt(o, p, [&](int64_t pixel) { return value(pixel * o.c + c); })));
}

// A window that lies in the padding alone.
void setLowest(void* y, const TensorType& type) {
  for (int64_t c = 0; c < type.shape.c; c++) setValue(y, type, c, -INFINITY);
}

Kernel slowPool(const Node& node, int) {
  return {[=](Run& run) { referencePool(node, run); }};
}

Kernel avgPool(const Node& node, int) {
  const Window w = windowOf(node);
  const Shape s = node.in(0), o = node.out(0);
  const Floats from(node.inputs[0]), to(node.outputs[0]);
  const int64_t pitch = from.type.pitch(), outPitch = to.type.pitch();
  const bool many = w.kernel.product() > mostInOneSum;
  return {[=, add = OCTCONV_PICK(addInto), scale = OCTCONV_PICK(scaleBy)](Run& run) {
            run.parallel(o.n * o.t * o.h, [&](int64_t row, char* scratch) {
              auto* sums = reinterpret_cast<double*>(scratch);
              auto* room = reinterpret_cast<float*>(sums + (many ? o.c : 0));  // a pixel of y; of x, too, if few
              const int64_t n = row / (o.h * o.t), t = row / o.h % o.t, y = row % o.h;
              for (int64_t x = 0; x < o.w; x++) {
                const int64_t at = (row * o.w + x) * outPitch;
                float* means = to.target(run.outputs[0], at, room);
                if (many) {
                  std::fill_n(sums, o.c, 0.);
                  const int64_t count = eachRow(s, w, n, t, y, x, [&](int64_t first, int64_t pixels) {
                    addPixels(from.elements(run.inputs[0], first * pitch), pitch, pixels, o.c, sums);
                  });
                  for (int64_t c = 0; c < o.c; c++) means[c] = static_cast<float>(sums[c] / static_cast<double>(count));
                } else {
                  std::fill_n(means, o.c, 0.f);
                  const int64_t count = eachInput(s, w, n, t, y, x, [&](int64_t p) {
                    add(means, from.read(run.inputs[0], p * pitch, o.c, room + o.c), o.c);
                  });
                  scale(means, 1 / static_cast<float>(count), o.c);
                }
                to.write(run.outputs[0], at, o.c, room);
              }
            });
          },
          0, static_cast<size_t>(o.c) * (many ? sizeof(double) + sizeof(float) : 2 * sizeof(float))};
}

Kernel maxPool(const Node& node, int) {
  const Window w = windowOf(node);
  const Shape s = node.in(0), o = node.out(0);
  const bool halves = node.outputs.size() == 2;
  const int64_t pitch = node.inputs[0].pitch(), outPitch = node.outputs[0].pitch(),
                halfPitch = halves ? node.outputs[1].pitch() : 0;
  const int64_t rows = halves ? 2 : 1, pairs = (o.h + rows - 1) / rows;  // a task: a row, or the two that P needs
  const DType dtype = node.outputs[0].dtype;
  const auto bytes = static_cast<int64_t>(bytesOf(dtype));
  const int64_t most = std::min(w.kernel.t, s.t) * std::min(w.kernel.h, s.h) * std::min(w.kernel.w, s.w);
  return {[=, largest = OCTCONV_PICK(largestOf), halve = OCTCONV_PICK(halveRows)](Run& run) {
            run.parallel(o.n * o.t * pairs, [&](int64_t task, char* scratch) {
              const int64_t plane = task / pairs, n = plane / o.t, t = plane % o.t, first = task % pairs * rows,
                            last = std::min(first + rows, o.h);
              auto** inputs = reinterpret_cast<const char**>(scratch);
              char* y = run.out<char>(0) + (plane * o.h + first) * o.w * outPitch * bytes;
              char* to = y;
              for (int64_t row = first; row < last; row++)
                for (int64_t x = 0; x < o.w; x++, to += outPitch * bytes) {
                  int64_t count = 0;
                  eachInput(s, w, n, t, row, x,
                            [&](int64_t at) { inputs[count++] = run.in<char>(0) + at * pitch * bytes; });
                  if (count)
                    largest(dtype, inputs, count, to, o.c);
                  else
                    setLowest(to, node.outputs[0]);
                }
              if (halves)
                halve(dtype, y, outPitch, last - first, o.w,
                      run.out<char>(1) + (plane * half(o.h) + first / 2) * half(o.w) * halfPitch * bytes, halfPitch,
                      static_cast<int>(o.c));
            });
          },
          0, static_cast<size_t>(most) * sizeof(char*)};
}

const Registered<Contract> contracts[] = {{"maxPool", {check}}, {"avgPool", {check, false, true}}};
const Registered<Kernels<Reference>> slow[] = {{"maxPool", pitched<Reference>(slowPool, anyElements)},
                                               {"avgPool", pitched<Reference>(slowPool, anyElements)}};
const Registered<Kernels<Cpu>> fast[] = {{"maxPool", pitched<Cpu>(maxPool, anyFloats)},
                                         {"avgPool", pitched<Cpu>(avgPool, anyFloats)}};

}  // namespace
}  // namespace octconv
#endif
