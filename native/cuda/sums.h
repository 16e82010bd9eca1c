// Long sums, in device code.
#pragma once
#include "intrinsics.h"

namespace octconv::cuda {

// Some numbers are summed up in f32, these sums in double: a million equal numbers in one f32 lose 1 %.
struct LongSum {
  double all = 0;
  float some = 0;
  int count = 0;

  OCTCONV_DEVICE void add(float x) {
    some += x;
    if (++count < 32) return;
    all += static_cast<double>(some);
    some = 0, count = 0;
  }
  OCTCONV_DEVICE double total() const { return all + static_cast<double>(some); }
};

}  // namespace octconv::cuda
