// P(x) of a piece of a plane: 2x2 average pooling, stride 2, ceil mode, borders averaged over what exists.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "levels.h"

// in: rows x width pixels, `inPitch` floats from pixel to pixel; out: half(rows) x half(width) pixels, `outPitch`
// floats apart; `channels` of each. A mean is ((a + b) + (c + d)) / 4 or (a + b) / 2, so that it is the same for any
// cut.
OCTCONV_DECLARE(void halveRows(const float* in, ptrdiff_t inPitch, int64_t rows, int64_t width, float* out,
                               ptrdiff_t outPitch, int channels))
