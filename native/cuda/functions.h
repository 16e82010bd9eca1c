// Functions of one value, as kernels compute them. NaN stays NaN.
#pragma once
#include <math.h>

#include "../ops/functions.h"
#include "intrinsics.h"

namespace octconv::cuda {

OCTCONV_DEVICE float clamp(float x, float least, float most) { return x < least ? least : x > most ? most : x; }

OCTCONV_DEVICE float valueOf(Unary function, float slope, float x) {
  switch (function) {
    case Unary::relu:
      return x < 0 ? 0 : x;
    case Unary::relu6:
      return clamp(x, 0, 6);
    case Unary::leakyRelu:
      return x < 0 ? x * slope : x;
    case Unary::sigmoid:
      return 1 / (1 + expf(-x));
    case Unary::silu:
      return x / (1 + expf(-x));
    case Unary::hardSigmoid:
      return clamp(x + 3, 0, 6) / 6;
    case Unary::hardSwish:
      return x * (clamp(x + 3, 0, 6) / 6);
    case Unary::gelu:
      return x * erfcf(x * -0.70710678f) / 2;
  }
  return x;
}

}  // namespace octconv::cuda
