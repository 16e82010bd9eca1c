// Sizes that come from outside are multiplied and added here: what is too large is an error, never another number.
#pragma once
#include <cstddef>
#include <cstdint>

#include "error.h"

namespace octconv {

// Of elements, bytes and counts: of a value, a parameter, a run.
inline constexpr int64_t mostBytes = int64_t{1} << 40;

template <class... Sizes>
int64_t product(Sizes... sizes) {
  int64_t result = 1;
  if ((__builtin_mul_overflow(result, sizes, &result) || ...)) {
    std::ostringstream factors;
    ((factors << (factors.tellp() > 0 ? " x " : "") << sizes), ...);
    fail("sizes: ", factors.str(), " is too large");
  }
  return result;
}

template <class... Sizes>
int64_t sum(Sizes... sizes) {
  int64_t result = 0;
  if ((__builtin_add_overflow(result, sizes, &result) || ...)) {
    std::ostringstream terms;
    ((terms << (terms.tellp() > 0 ? " + " : "") << sizes), ...);
    fail("sizes: ", terms.str(), " is too large");
  }
  return result;
}

}  // namespace octconv
