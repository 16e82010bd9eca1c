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

}  // namespace octconv::OCTCONV_LEVEL
