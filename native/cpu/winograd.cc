#include "winograd.h"

#include "finish.h"

namespace octconv::OCTCONV_LEVEL {

// --- Inputs -----------------------------------------------------------------------------------------------------

// B^T of one line of inputs.
template <class V>
OCTCONV_INLINE void inputLine(const V (&d)[6], V (&to)[6]) {
  to[0] = 4 * d[0] - 5 * d[2] + d[4];
  const V a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
  to[1] = a + b;
  to[2] = a - b;
  to[3] = c + e;
  to[4] = c - e;
  to[5] = 4 * d[1] - 5 * d[3] + d[5];
}
template <class V>
OCTCONV_INLINE void inputLine(const V (&d)[4], V (&to)[4]) {
  to[0] = d[0] - d[2];
  to[1] = d[1] + d[2];
  to[2] = d[2] - d[1];
  to[3] = d[1] - d[3];
}

template <int O, class T>
static void input(const WinogradInput& given) {
  const WinogradInput t = given;  // no store can change it: its members stay in registers
  using V = decltype(widened(static_cast<const T*>(nullptr)));
  constexpr int side = O + 2, all = elements<T>;
  constexpr ptrdiff_t each = sizeof(V) / all;
  for (int64_t next = 0; next < t.channels; next += all) {
    // The last vector begins where it is a whole one.
    const int64_t c = t.channels < all ? 0 : next < t.channels - all ? next : t.channels - all;
    const int count = t.channels < all ? static_cast<int>(t.channels) : all;
    V columns[side][side], line[side], out[side];  // columns[x][y]
#pragma GCC unroll 6
    for (int x = 0; x < side; x++) {
#pragma GCC unroll 6
      for (int y = 0; y < side; y++)
        line[y] = widened(reinterpret_cast<const T*>(t.pixels[(y * side + x) * t.pixelStride]) + c, count);
      inputLine(line, columns[x]);
    }
#pragma GCC unroll 6
    for (int y = 0; y < side; y++) {
#pragma GCC unroll 6
      for (int x = 0; x < side; x++) line[x] = columns[x][y];
      inputLine(line, out);
#pragma GCC unroll 6
      for (int x = 0; x < side; x++) {
        char* to = t.to + (y * side + x) * t.positionStride + c * each;
        if (count == all)
          reinterpret_cast<Anywhere<V>*>(to)->value = out[x];
        else
          __builtin_memcpy(to, &out[x], count * each);
      }
    }
  }
}

// --- Inputs over time -------------------------------------------------------------------------------------------

// B^T of F(4, 5).
OCTCONV_INLINE void inputLine(const Vec (&d)[8], Vec (&to)[8]) {
  to[0] = d[0] - d[6] + 5.25f * (d[4] - d[2]);
  const Vec a = d[2] + d[6] - 4.25f * d[4], b = d[1] + d[5] - 4.25f * d[3];
  to[1] = a + b;
  to[2] = a - b;
  const Vec c = d[6] + .25f * d[2] - 1.25f * d[4], e = .5f * d[1] - 2.5f * d[3] + 2.f * d[5];
  to[3] = c + e;
  to[4] = c - e;
  const Vec f = d[6] + 4.f * d[2] - 5.f * d[4], g = 2.f * d[1] - 2.5f * d[3] + .5f * d[5];
  to[5] = f + g;
  to[6] = f - g;
  to[7] = d[7] - d[1] + 5.25f * (d[3] - d[5]);
}

template <int positions, class T>
static void inputOverTime(const OverTimeInput& given) {
  const OverTimeInput t = given;
  using V = decltype(widened(static_cast<const T*>(nullptr)));
  constexpr int all = elements<T>;
  constexpr ptrdiff_t each = sizeof(V) / all;
  for (int64_t c = 0; c < t.count; c += all) {
    const int count = t.count - c < all ? static_cast<int>(t.count - c) : all;
    V d[positions], out[positions];
#pragma GCC unroll 8
    for (int p = 0; p < positions; p++) d[p] = widened(reinterpret_cast<const T*>(t.planes[p]) + c * t.steps[p], count);
    inputLine(d, out);
#pragma GCC unroll 8
    for (int p = 0; p < positions; p++) {
      char* to = t.to + p * t.positionStride + c * each;
      if (count == all)
        reinterpret_cast<Anywhere<V>*>(to)->value = out[p];
      else
        __builtin_memcpy(to, &out[p], count * each);
    }
  }
}

// --- Outputs ----------------------------------------------------------------------------------------------------

OCTCONV_INLINE Vec last(Vec sum) { return sum; }
OCTCONV_INLINE Bits last(Bits sum) { return 4 * sum; }  // its weights are multiplied by 6, others by 24

// A^T of one line of sums.
template <class Sum>
OCTCONV_INLINE void outputLine(const Sum (&m)[6], Sum (&to)[4]) {
  const Sum s = m[1] + m[2], d = m[1] - m[2], u = m[3] + m[4], v = m[3] - m[4];
  to[0] = m[0] + s + u;
  to[1] = d + 2 * v;
  to[2] = s + 4 * u;
  to[3] = d + 8 * v + last(m[5]);
}
template <class Sum>
OCTCONV_INLINE void outputLine(const Sum (&m)[4], Sum (&to)[2]) {
  to[0] = m[0] + m[1] + m[2];
  to[1] = m[1] - m[2] - m[3];
}

template <int O>
OCTCONV_INLINE Vec unscaled(Vec sum) {
  return sum;
}
// Divides by 4, or by 9 * 64: 9 has an inverse among the numbers modulo 2^32.
template <int O>
OCTCONV_INLINE IntVec unscaled(Bits sum) {
  return O == 2 ? (IntVec)sum >> 2 : (IntVec)(sum * 0x38e38e39u) >> 6;
}

template <class Sum>
OCTCONV_INLINE Sum sumAt(const char* sums, ptrdiff_t at) {
  return reinterpret_cast<const Anywhere<Sum>*>(sums + at * 4)->value;
}

template <int O, class Sum, class T>
static void output(const WinogradOutput& given) {
  const WinogradOutput t = given;
  constexpr int side = O + 2;
  for (int64_t c = 0; c < t.channels; c += lanes) {
    const int count = t.channels - c < lanes ? static_cast<int>(t.channels - c) : lanes;
    Sum columns[side][O], line[side], out[O];  // columns[x][y]
#pragma GCC unroll 6
    for (int x = 0; x < side; x++) {
#pragma GCC unroll 6
      for (int y = 0; y < side; y++) line[y] = sumAt<Sum>(t.from, (y * side + x) * t.positionStride + c);
      outputLine(line, columns[x]);
    }
    const Vec scale = t.scale ? load(t.scale + c) * t.steps : Vec{},
              bias = t.raw ? Vec{} : load(t.bias + c) * t.steps + t.shift;
    for (int y = 0; y < t.rows; y++) {
#pragma GCC unroll 6
      for (int x = 0; x < side; x++) line[x] = columns[x][y];
      outputLine(line, out);
#pragma GCC unroll 4
      for (int x = 0; x < O; x++) {
        if (x >= t.columns) break;
        const ptrdiff_t at = y * t.row + x * t.pitch + c;
        auto sum = unscaled<O>(out[x]);
        if (t.start) sum += sumAt<decltype(sum)>(t.start, (y / 2) * t.startRow + (x / 2) * t.startPitch + c);
        if (t.raw) {
          store(static_cast<float*>(t.out.data) + at, (Vec)sum);
          continue;
        }
        Vec v = asFloat(sum);
        v = t.scale ? v * scale + bias : v + bias;
        finishVector<T, T>(t, v, at, y * t.residualRow + x * t.residualPitch + c, count);
      }
    }
  }
}

// --- Outputs over time ------------------------------------------------------------------------------------------

// A^T of F(4, 5).
OCTCONV_INLINE void outputLine(const Vec (&m)[8], Vec (&to)[4]) {
  const Vec s = m[1] + m[2], d = m[1] - m[2], u = m[3] + m[4], v = m[3] - m[4], w = m[5] + m[6], x = m[5] - m[6];
  to[0] = m[0] + s + u + w;
  to[1] = d + 2.f * v + .5f * x;
  to[2] = s + 4.f * u + .25f * w;
  to[3] = d + 8.f * v + .125f * x + m[7];
}

// A^T of F(2, 5).
template <class Sum>
OCTCONV_INLINE void outputLine(const Sum (&m)[6], Sum (&to)[2]) {
  to[0] = m[0] + (m[1] + m[2]) + (m[3] + m[4]);
  to[1] = (m[1] - m[2]) + 2 * (m[3] - m[4]) + last(m[5]);
}

OCTCONV_INLINE Vec unscaledOverTime(Vec sum) { return sum; }
// Divides by 24 = 3 * 8.
OCTCONV_INLINE IntVec unscaledOverTime(Bits sum) { return (IntVec)(sum * 0xaaaaaaabu) >> 3; }

template <int positions, int outputs, class Sum, class T>
static void outputOverTime(const WinogradOutput& given, int64_t pixels, int64_t pixelStride) {
  const WinogradOutput t = given;
  for (int64_t c = 0; c < t.channels; c += lanes) {
    const int count = t.channels - c < lanes ? static_cast<int>(t.channels - c) : lanes;
    const Vec scale = t.scale ? load(t.scale + c) * t.steps : Vec{}, bias = load(t.bias + c) * t.steps + t.shift;
    for (int64_t pixel = 0; pixel < pixels; pixel++) {
      Sum line[positions], out[outputs];
#pragma GCC unroll 8
      for (int p = 0; p < positions; p++) line[p] = sumAt<Sum>(t.from, p * t.positionStride + pixel * pixelStride + c);
      outputLine(line, out);
#pragma GCC unroll 4
      for (int i = 0; i < outputs; i++) {
        if (i >= t.rows) break;
        const Vec sum = asFloat(unscaledOverTime(out[i])), v = t.scale ? sum * scale + bias : sum + bias;
        finishVector<T, T>(t, v, i * t.row + pixel * t.pitch + c, i * t.residualRow + pixel * t.residualPitch + c,
                           count);
      }
    }
  }
}

void winogradInput2(const WinogradInput& t) {
  if (t.dtype == DType::f32) input<2, float>(t);
  if (t.dtype == DType::bf16) input<2, BFloat16>(t);
  if (t.dtype == DType::u8) input<2, uint8_t>(t);
}
void winogradInput4(const WinogradInput& t) {
  if (t.dtype == DType::f32) input<4, float>(t);
  if (t.dtype == DType::bf16) input<4, BFloat16>(t);
  if (t.dtype == DType::u8) input<4, uint8_t>(t);
}
void winogradOutput2(const WinogradOutput& t) {
  if (t.integers) return output<2, Bits, uint8_t>(t);
  t.out.dtype == DType::bf16 ? output<2, Vec, BFloat16>(t) : output<2, Vec, float>(t);
}
void winogradOutput4(const WinogradOutput& t) {
  if (t.integers) return output<4, Bits, uint8_t>(t);
  t.out.dtype == DType::bf16 ? output<4, Vec, BFloat16>(t) : output<4, Vec, float>(t);
}

void overTimeInput(const OverTimeInput& t) {
  if (t.dtype == DType::f32) t.positions == 8 ? inputOverTime<8, float>(t) : inputOverTime<6, float>(t);
  if (t.dtype == DType::bf16) t.positions == 8 ? inputOverTime<8, BFloat16>(t) : inputOverTime<6, BFloat16>(t);
  if (t.dtype == DType::u8) inputOverTime<6, uint8_t>(t);
}
template <class Sum, class T>
static void outputOverTime(const WinogradOutput& t, int positions, int outputs, int64_t pixels, int64_t pixelStride) {
  if (outputs == 2) return outputOverTime<6, 2, Sum, T>(t, pixels, pixelStride);
  if constexpr (sizeof(T) > 1)
    if (positions == 8) return outputOverTime<8, 4, Sum, T>(t, pixels, pixelStride);
  outputOverTime<6, 4, Sum, T>(t, pixels, pixelStride);
}
void overTimeOutput(const WinogradOutput& t, int positions, int outputs, int64_t pixels, int64_t pixelStride) {
  if (t.integers) return outputOverTime<Bits, uint8_t>(t, positions, outputs, pixels, pixelStride);
  if (t.out.dtype == DType::bf16) return outputOverTime<Vec, BFloat16>(t, positions, outputs, pixels, pixelStride);
  outputOverTime<Vec, float>(t, positions, outputs, pixels, pixelStride);
}

}  // namespace octconv::OCTCONV_LEVEL
