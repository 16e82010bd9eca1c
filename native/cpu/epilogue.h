// What becomes of a sum of products before it is stored.
#pragma once
#include "rows.h"

namespace octconv {

// y = clamp(sum * scale + bias + residual), all in elements of `out`: for u8 in its steps, counted from 0.
struct Epilogue {
  const float* scale;  // per channel: what a sum of integers is worth, or null; not yet in steps
  const float* bias;   // per channel; not yet in steps
  float steps, shift;  // of a 1; for zero points
  Elements residual;   // or null
  float residualSteps;
  Elements out;
  ptrdiff_t pitch, residualPitch;  // of both: elements from pixel to pixel
  ptrdiff_t channels;
  float least, most;  // relu, relu6, the ends of u8 or the infinities
};

}  // namespace octconv
