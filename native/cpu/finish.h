// The epilogue of one vector of sums, for the kernels that make them.
#pragma once
#include "epilogue.h"
#include "vec.h"

namespace octconv::OCTCONV_LEVEL {

OCTCONV_INLINE Vec asFloat(Vec x) { return x; }
OCTCONV_INLINE Vec asFloat(IntVec x) { return __builtin_convertvector(x, Vec); }

// Residual, clamp and store of one vector, of which `count` lanes are wanted, `at` elements from the first of `out`.
template <class Residual, class Out>
OCTCONV_INLINE void finishVector(const Epilogue& t, Vec y, ptrdiff_t at, int count) {
  const auto& r = t.residual;
  if (r.data) {
    const auto* from = static_cast<const Residual*>(r.data) + at;
    const Vec x = count == lanes ? load(from) : load(from, count);
    y += sizeof(Residual) == 1 ? (x - static_cast<float>(r.zero)) * r.scale : x;
  }
  y = clamp(y, splat(t.low), splat(t.high));
  if (sizeof(Out) == 1) y = y * t.stepsPerUnit + static_cast<float>(t.out.zero);
  auto* to = static_cast<Out*>(t.out.data) + at;
  count == lanes ? store(to, y) : store(to, y, count);
}

}  // namespace octconv::OCTCONV_LEVEL
