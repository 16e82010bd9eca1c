#include "winograd.h"

#include "vec.h"

namespace octconv::OCTCONV_LEVEL {

// B^T of one line of inputs.
OCTCONV_INLINE void inputLine(const Vec (&d)[6], Vec (&to)[6]) {
  to[0] = 4 * d[0] - 5 * d[2] + d[4];
  const Vec a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
  to[1] = a + b;
  to[2] = a - b;
  to[3] = c + e;
  to[4] = c - e;
  to[5] = 4 * d[1] - 5 * d[3] + d[5];
}
OCTCONV_INLINE void inputLine(const Vec (&d)[4], Vec (&to)[4]) {
  to[0] = d[0] - d[2];
  to[1] = d[1] + d[2];
  to[2] = d[2] - d[1];
  to[3] = d[1] - d[3];
}

// A^T of one line of sums.
OCTCONV_INLINE void outputLine(const Vec (&m)[6], Vec (&to)[4]) {
  const Vec s = m[1] + m[2], d = m[1] - m[2], u = m[3] + m[4], v = m[3] - m[4];
  to[0] = m[0] + s + u;
  to[1] = d + 2 * v;
  to[2] = s + 4 * u;
  to[3] = d + 8 * v + m[5];
}
OCTCONV_INLINE void outputLine(const Vec (&m)[4], Vec (&to)[2]) {
  to[0] = m[0] + m[1] + m[2];
  to[1] = m[1] - m[2] - m[3];
}

template <int O, class T>
static void input(const WinogradInput& t) {
  constexpr int side = O + 2;
  for (int64_t c = 0; c < t.channels; c += lanes) {
    const int count = t.channels - c < lanes ? static_cast<int>(t.channels - c) : lanes;
    Vec columns[side][side], line[side], out[side];  // columns[x][y]
#pragma GCC unroll 6
    for (int x = 0; x < side; x++) {
#pragma GCC unroll 6
      for (int y = 0; y < side; y++) {
        const auto* from = reinterpret_cast<const T*>(t.pixels[(y * side + x) * t.pixelStride]) + c;
        line[y] = count == lanes ? load(from) : load(from, count);
      }
      inputLine(line, columns[x]);
    }
#pragma GCC unroll 6
    for (int y = 0; y < side; y++) {
#pragma GCC unroll 6
      for (int x = 0; x < side; x++) line[x] = columns[x][y];
      inputLine(line, out);
#pragma GCC unroll 6
      for (int x = 0; x < side; x++) {
        float* to = t.to + (y * side + x) * t.positionStride + c;
        count == lanes ? store(to, out[x]) : store(to, out[x], count);
      }
    }
  }
}

template <int O, class T>
static void output(const WinogradOutput& t) {
  constexpr int side = O + 2;
  const Vec low = splat(t.low), high = splat(t.high);
  for (int64_t c = 0; c < t.channels; c += lanes) {
    const int count = t.channels - c < lanes ? static_cast<int>(t.channels - c) : lanes;
    Vec columns[side][O], line[side], out[O];  // columns[x][y]
#pragma GCC unroll 6
    for (int x = 0; x < side; x++) {
#pragma GCC unroll 6
      for (int y = 0; y < side; y++) line[y] = load(t.from + (y * side + x) * t.positionStride + c);
      outputLine(line, columns[x]);
    }
    const Vec bias = t.bias ? load(t.bias + c) : Vec{};
    for (int y = 0; y < t.rows; y++) {
#pragma GCC unroll 6
      for (int x = 0; x < side; x++) line[x] = columns[x][y];
      outputLine(line, out);
#pragma GCC unroll 4
      for (int x = 0; x < O; x++) {
        if (x >= t.columns) break;
        const ptrdiff_t at = y * t.row + x * t.pitch + c;
        Vec v = out[x] + bias;
        if (t.start) v += load(t.start + (y / 2) * t.startRow + (x / 2) * t.startPitch + c);
        if (t.residual) {
          const T* from = static_cast<const T*>(t.residual) + at;
          v += count == lanes ? load(from) : load(from, count);
        }
        v = clamp(v, low, high);
        T* to = static_cast<T*>(t.to) + at;
        count == lanes ? store(to, v) : store(to, v, count);
      }
    }
  }
}

template <int O>
static void anyInput(const WinogradInput& t) {
  t.dtype == DType::bf16 ? input<O, BFloat16>(t) : input<O, float>(t);
}
template <int O>
static void anyOutput(const WinogradOutput& t) {
  t.dtype == DType::bf16 ? output<O, BFloat16>(t) : output<O, float>(t);
}

void winogradInput2(const WinogradInput& tile) { anyInput<2>(tile); }
void winogradInput4(const WinogradInput& tile) { anyInput<4>(tile); }
void winogradOutput2(const WinogradOutput& tile) { anyOutput<2>(tile); }
void winogradOutput4(const WinogradOutput& tile) { anyOutput<4>(tile); }

}  // namespace octconv::OCTCONV_LEVEL
