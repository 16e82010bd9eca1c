// What becomes of a sum of products before it is stored.
#pragma once
#include "rows.h"

namespace octconv {

struct Epilogue {
  const float* scale;  // per channel: what a sum of integers is worth, or null
  const float* bias;   // per channel
  Elements residual;   // added before the clamp, laid out as `out`, or null
  Elements out;
  float stepsPerUnit;  // 1 / out.scale
  ptrdiff_t pitch;     // elements from pixel to pixel
  ptrdiff_t channels;
  float low, high;  // clamp: relu, relu6 or the infinities
};

}  // namespace octconv
