// resize: pictures u8 [N,T,H,W,3] to `height` x `width`, u8, exactly as Pillow's Image.resize does: an antialiased
// `bilinear` or `bicubic` (a = -.5) filter whose support grows with the reduction. With `crop` {top, left} only the
// window of the output's size at this place is computed, so that a crop costs no more than its own rows and columns.
//
// Each axis has a table of weights in 22-bit fixed point. One axis is resized and rounded to 8 bits, then the other:
// the width first, but the height where it shrinks by more than twice as many pixels as the width. Networks were
// trained on pictures made this way, so both devices give these very bytes. The order is that of Pillow 13; Pillow 12
// takes the height first only where a picture is 100 times as high as wide, and bicubic noise then differs by up to 25
// levels.
//
// antialias: false is OpenCV's resize (INTER_LINEAR, INTER_CUBIC with a = -.75): the filter does not grow, pixels
// beyond the border are the border's. It agrees to one level, but where noise overshoots the bytes between the axes:
// OpenCV rounds and clips once, behind both.
#include "../cpu/levels.h"
#include "../cpu/vec.h"

OCTCONV_DECLARE(void resizeRow(const uint8_t* x, uint8_t* y, ptrdiff_t width, const int32_t* first, const int32_t* taps,
                               const int32_t* weights, ptrdiff_t pitch))
OCTCONV_DECLARE(void resizeColumns(const uint8_t* x, uint8_t* y, ptrdiff_t pitch, ptrdiff_t size, int32_t taps,
                                   const int32_t* weights))

namespace octconv::OCTCONV_LEVEL {

static constexpr int fractionBits = 22;

static uint8_t toByte(int32_t sum) {
  sum >>= fractionBits;
  return static_cast<uint8_t>(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

// One row. Output pixel i is made of taps[i] pixels from first[i] on, its weights start at weights[i * pitch].
void resizeRow(const uint8_t* x, uint8_t* y, ptrdiff_t width, const int32_t* first, const int32_t* taps,
               const int32_t* weights, ptrdiff_t pitch) {
  typedef uint8_t Bytes __attribute__((vector_size(4)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  constexpr int32_t half = 1 << (fractionBits - 1);
  for (ptrdiff_t i = 0; i < width; i++) {
    const uint8_t* pixel = x + 3 * static_cast<ptrdiff_t>(first[i]);
    const int32_t* weight = weights + i * pitch;
    Ints sum = {half, half, half, 0};
    // Four bytes hold a pixel and a byte of the next one. The last pixel is read on its own: it may end the picture.
    for (int32_t k = 0; k < taps[i] - 1; k++) {
      Bytes bytes;
      __builtin_memcpy(&bytes, pixel + 3 * k, 4);
      sum += __builtin_convertvector(bytes, Ints) * weight[k];
    }
    for (int c = 0; c < 3; c++) y[3 * i + c] = toByte(sum[c] + pixel[3 * (taps[i] - 1) + c] * weight[taps[i] - 1]);
  }
}

// One row of `size` bytes made of `taps` rows of as many bytes, which begin every `pitch` bytes.
void resizeColumns(const uint8_t* x, uint8_t* y, ptrdiff_t pitch, ptrdiff_t size, int32_t taps,
                   const int32_t* weights) {
  constexpr ptrdiff_t block = 64;  // sums stay in registers
  for (ptrdiff_t i = 0; i < size; i += block) {
    int32_t sums[block];
    const ptrdiff_t count = size - i < block ? size - i : block;
    for (ptrdiff_t j = 0; j < block; j++) sums[j] = 1 << (fractionBits - 1);
    for (int32_t k = 0; k < taps; k++) {
      const uint8_t* row = x + k * pitch + i;
      const int32_t weight = weights[k];
      if (count == block)
        for (ptrdiff_t j = 0; j < block; j++) sums[j] += row[j] * weight;
      else
        for (ptrdiff_t j = 0; j < count; j++) sums[j] += row[j] * weight;
    }
    for (ptrdiff_t j = 0; j < count; j++) y[i + j] = toByte(sums[j]);
  }
}

}  // namespace octconv::OCTCONV_LEVEL

#if OCTCONV_MAIN
#include <algorithm>
#include <cmath>

#include "../cpu/kernel.h"
#include "resize.h"

namespace octconv {
namespace {

ResizeFilter filterOf(const Attr& attrs) {
  const std::string& interpolation = attrs["interpolation"].text();
  const bool antialias = !attrs.has("antialias") || attrs.flag("antialias");
  if (interpolation == "bilinear") return {1, 0, antialias};
  if (interpolation == "bicubic") return {2, antialias ? -.5 : -.75, antialias};
  fail("resize: interpolation '", interpolation, "', wanted bilinear or bicubic");
}

ResizeAxis axisOf(int64_t from, int64_t to, int64_t begin, int64_t count, const ResizeFilter& filter) {
  const double scale = static_cast<double>(from) / static_cast<double>(to),
               stretch = filter.antialias ? std::max(scale, 1.0) : 1.0;
  ResizeAxis axis{from, begin, count, scale, stretch, filter, 0, 0, 0};
  axis.pitch = std::min(static_cast<int64_t>(std::ceil(filter.support * stretch)) * 2 + 1, from);
  axis.start = axis.window(0).low;
  axis.size = axis.window(count - 1).high - axis.start;
  return axis;
}

// Pixel i of an axis is made of taps[i] pixels from start + first[i] on, its weights start at weights[i * pitch].
struct Axis : ResizeAxis {
  std::vector<int32_t> first, taps, weights;

  explicit Axis(const ResizeAxis& axis)
      : ResizeAxis(axis), weights(static_cast<size_t>(octconv::product(count, pitch))) {
    for (int64_t i = 0; i < count; i++) {
      const Window w = window(i);
      weigh(w, baseline::fractionBits, [&](int64_t k, int32_t weight) { weights[i * pitch + k] = weight; });
      first.push_back(static_cast<int32_t>(w.low - start));
      taps.push_back(static_cast<int32_t>(w.high - w.low));
    }
  }
};

using Geometry = ResizeGeometry<Axis>;

Geometry geometry(const Node& node) {
  const auto g = resizeGeometryOf(node);
  return {g.pictures, g.height, g.width, g.outHeight, g.outWidth, g.downFirst, Axis(g.down), Axis(g.across)};
}

// Pixel i of an axis; at(p) is the value of pixel start + p.
template <class At>
uint8_t weighted(const Axis& axis, int64_t i, const At& at) {
  int64_t sum = 1 << (baseline::fractionBits - 1);
  for (int64_t k = 0; k < axis.taps[i]; k++) sum += int64_t{at(axis.first[i] + k)} * axis.weights[i * axis.pitch + k];
  return static_cast<uint8_t>(std::clamp<int64_t>(sum >> baseline::fractionBits, 0, 255));
}

// Rows of `size` bytes, which begin every `pitch` bytes, to `height` such rows.
void referenceDown(const Axis& down, const uint8_t* x, int64_t pitch, int64_t size, int64_t height, uint8_t* y) {
  for (int64_t i = 0; i < height; i++)
    for (int64_t j = 0; j < size; j++) y[i * size + j] = weighted(down, i, [&](int64_t p) { return x[p * pitch + j]; });
}

// `height` rows, which begin every `pitch` bytes, to rows of `width` pixels.
void referenceAcross(const Axis& across, const uint8_t* x, int64_t pitch, int64_t height, int64_t width, uint8_t* y) {
  for (int64_t r = 0; r < height; r++)
    for (int64_t i = 0; i < width; i++)
      for (int64_t c = 0; c < 3; c++)
        y[(r * width + i) * 3 + c] = weighted(across, i, [&](int64_t p) { return x[r * pitch + p * 3 + c]; });
}

// x begins with the first pixel that is read.
void reference(const Geometry& g, const uint8_t* x, uint8_t* between, uint8_t* y) {
  const int64_t pitch = g.width * 3;
  if (g.downFirst) {
    referenceDown(g.down, x, pitch, g.across.size * 3, g.outHeight, between);
    referenceAcross(g.across, between, g.across.size * 3, g.outHeight, g.outWidth, y);
  } else {
    referenceAcross(g.across, x, pitch, g.down.size, g.outWidth, between);
    referenceDown(g.down, between, g.outWidth * 3, g.outWidth * 3, g.outHeight, y);
  }
}

void check(const Node& node) { resizeGeometryOf(node); }

Kernel slow(const Node& node, int) {
  Geometry g = geometry(node);
  const auto shared = static_cast<size_t>(g.between());
  return {[=, g = std::move(g)](Run& run) {
            for (int64_t p = 0; p < g.pictures; p++)
              reference(g, run.in<uint8_t>(0) + p * g.pictureIn() + g.start(), reinterpret_cast<uint8_t*>(run.shared),
                        run.out<uint8_t>(0) + p * g.pictureOut());
          },
          shared};
}

Kernel fast(const Node& node, int) {
  Geometry g = geometry(node);
  const int64_t pitch = g.width * 3;
  Kernel kernel;
  kernel.sharedBytes = static_cast<size_t>(g.between());
  kernel.run = [=, g = std::move(g), row = OCTCONV_PICK(resizeRow), columns = OCTCONV_PICK(resizeColumns)](Run& run) {
    const auto rows = [&](int64_t count, const auto& one) {  // `one` makes one row of the result
      const int64_t parts = pieces(count, 16);
      run.parallel(parts, [&](int64_t task, char*) {
        const auto [begin, end] = piece(count, parts, task);
        for (int64_t i = begin; i < end; i++) one(i);
      });
    };
    const auto down = [&](const uint8_t* x, int64_t from, int64_t size, uint8_t* y) {
      rows(g.outHeight, [&](int64_t i) {
        columns(x + g.down.first[i] * from, y + i * size, from, size, g.down.taps[i],
                g.down.weights.data() + i * g.down.pitch);
      });
    };
    const auto across = [&](const uint8_t* x, int64_t from, int64_t height, uint8_t* y) {
      rows(height, [&](int64_t i) {
        row(x + i * from, y + i * g.outWidth * 3, g.outWidth, g.across.first.data(), g.across.taps.data(),
            g.across.weights.data(), g.across.pitch);
      });
    };
    uint8_t* between = reinterpret_cast<uint8_t*>(run.shared);
    for (int64_t p = 0; p < g.pictures; p++) {
      const uint8_t* x = run.in<uint8_t>(0) + p * g.pictureIn() + g.start();
      uint8_t* y = run.out<uint8_t>(0) + p * g.pictureOut();
      if (g.downFirst) {
        down(x, pitch, g.across.size * 3, between);
        across(between, g.across.size * 3, g.outHeight, y);
      } else {
        across(x, pitch, g.down.size, between);
        down(between, g.outWidth * 3, g.outWidth * 3, y);
      }
    }
  };
  return kernel;
}

const Registered<Contract> contract{"resize", {check}};
const Registered<Kernels<Reference>> onReference{"resize", {slow, {DType::u8}}};
const Registered<Kernels<Cpu>> onCpu{"resize", {fast, {DType::u8}}};

}  // namespace

ResizeGeometry<ResizeAxis> resizeGeometryOf(const Node& node) {
  node.want(1, 1);
  if (node.inputs[0].dtype != DType::u8 || node.outputs[0].dtype != DType::u8)
    fail("resize: got ", nameOf(node.inputs[0].dtype), " to ", nameOf(node.outputs[0].dtype), ", wanted u8 to u8");
  const Shape &in = node.in(0), &out = node.out(0);
  const int64_t height = node.attrs["height"].integer(), width = node.attrs["width"].integer();
  const bool cropped = node.attrs.has("crop");
  const int64_t top = cropped ? node.attrs["crop"]["top"].integer() : 0;
  const int64_t left = cropped ? node.attrs["crop"]["left"].integer() : 0;
  // Tables, about 5 weights for each pixel of an axis, stay within memory; the whole result is never held, so it may be
  // huge.
  constexpr int64_t most = 1 << 24, mostWhole = int64_t{1} << 48;
  if (in.n != out.n || in.t != out.t || in.c != 3 || out.c != 3)
    fail("resize: ", in, " to ", out, ", wanted [N,T,H,W,3] to [N,T,h,w,3]");
  if (std::min({in.h, in.w, out.h, out.w}) < 1 || std::max({in.h, in.w, out.h, out.w}) > most ||
      std::max(height, width) > mostWhole)
    fail("resize: ", in, " to ", out, " of ", height, " x ", width, ", wanted sizes from 1 to ", most);
  if (top < 0 || left < 0 || top > height - out.h || left > width - out.w)
    fail("resize: a crop of ", out.h, " x ", out.w, " at (", top, ", ", left, ") is not inside of ", height, " x ",
         width);
  const ResizeFilter filter = filterOf(node.attrs);
  return {in.n * in.t,
          in.h,
          in.w,
          out.h,
          out.w,
          in.h > height && in.h - height > (in.w - width) * 2,
          axisOf(in.h, height, top, out.h, filter),
          axisOf(in.w, width, left, out.w, filter)};
}

}  // namespace octconv
#endif
