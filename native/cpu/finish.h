// The epilogue of one vector of sums, for the kernels that make them.
#pragma once
#include "epilogue.h"
#include "vec.h"

namespace octconv::OCTCONV_LEVEL {

OCTCONV_INLINE Vec asFloat(Vec x) { return x; }
OCTCONV_INLINE Vec asFloat(IntVec x) { return __builtin_convertvector(x, Vec); }

// Residual, clamp and store of one vector in elements of `out`, of which `count` lanes are wanted, `at` elements from
// the first; its residual `residualAt` elements from the first.
template <class Residual, class Out>
OCTCONV_INLINE void finishVector(const Epilogue& t, Vec y, ptrdiff_t at, ptrdiff_t residualAt, int count) {
  if (t.residual.data) {
    const auto* from = static_cast<const Residual*>(t.residual.data) + residualAt;
    y = multiplyAdd(count == lanes ? load(from) : load(from, count), splat(t.residualSteps), y);
  }
  y = clamp(y, splat(t.least), splat(t.most));
  auto* to = static_cast<Out*>(t.out.data) + at;
  count == lanes ? store(to, y) : store(to, y, count);
}

}  // namespace octconv::OCTCONV_LEVEL
