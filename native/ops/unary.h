// Functions of one value (unary.cc), for ops that apply one to what they compute.
#pragma once
#include <stddef.h>

#include "../cpu/levels.h"
#include "functions.h"

OCTCONV_DECLARE(void apply(Unary op, float slope, const float* x, float* y, ptrdiff_t count))

namespace octconv {

struct UnaryFunction {
  const char* name;
  Unary op;
  double (*value)(double x, double slope);
};
const UnaryFunction* unaryOf(const char* name);  // null if there is none

}  // namespace octconv
