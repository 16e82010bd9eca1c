// Copies of elements between places that each step through the axes in their own way, as a launch: of concat, slice,
// transpose and reshape. The kernel is in native/ops/view.cu.
#pragma once
#include "walk.h"

namespace octconv::cuda {

struct MoveArgs {
  int64_t x, y;      // bytes from the arena's begin
  WalkArgs<2> walk;  // through x and y, in units
  int unit;          // bytes: 1, 2, 4, 8 or 16
};

}  // namespace octconv::cuda

#if !OCTCONV_KERNELS
#include "kernel.h"

namespace octconv::cuda {
// `bytes` of an element; `x` and `y` are places of values in the arena, the walk's start is what is added to them.
Launch moveOf(int64_t bytes, int64_t x, int64_t y, const Walk<2>& walk);
}  // namespace octconv::cuda
#endif
