// Where the items of a kernel lie: a Walk (native/core/walk.h) as kernels see it.
#pragma once
#include "sides.h"

namespace octconv::cuda {

template <int values>
struct WalkArgs {
  int64_t items;
  int axes;  // innermost first
  struct Axis {
    int64_t size, steps[values];
  } axis[5];
};

}  // namespace octconv::cuda

#if OCTCONV_KERNELS
#include "intrinsics.h"

namespace octconv::cuda {

// Adds where item `i` lies in each value.
template <int values>
OCTCONV_DEVICE void walk(const WalkArgs<values>& args, int64_t i, int64_t (&at)[values]) {
#pragma unroll 1
  for (int a = 0; a < args.axes; a++) {
    const auto& axis = args.axis[a];
    const bool last = a + 1 == args.axes;
    const int64_t next = last ? 0 : i / axis.size, along = i - next * axis.size;
#pragma unroll
    for (int k = 0; k < values; k++) at[k] += along * axis.steps[k];
    i = next;
  }
}

}  // namespace octconv::cuda

#else
#include "../core/walk.h"

namespace octconv::cuda {

template <size_t values>
WalkArgs<static_cast<int>(values)> argumentsOf(const Walk<values>& walk) {
  WalkArgs<static_cast<int>(values)> args{product(walk.rows(), walk.inner.size), 0, {}};
  const auto add = [&](const typename Walk<values>::Axis& axis) {
    auto& to = args.axis[args.axes++];
    to.size = axis.size;
    std::copy(axis.steps.begin(), axis.steps.end(), to.steps);
  };
  add(walk.inner);
  for (size_t a = walk.outer.size(); a-- > 0;) add(walk.outer[a]);
  return args;
}

}  // namespace octconv::cuda
#endif
