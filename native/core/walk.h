// Loops over the elements of a result, for inputs that step through its axes each in its own way: a step of 0 repeats
// an input along an axis.
#pragma once
#include <array>
#include <initializer_list>
#include <vector>

#include "tensor.h"

namespace octconv {

template <size_t Inputs>
struct Walk {
  using Offsets = std::array<int64_t, Inputs>;
  struct Axis {
    int64_t size;
    Offsets steps;  // in elements
  };
  Offsets start{};
  std::vector<Axis> outer;  // outermost first
  Axis inner{1, {}};

  // Outermost first. Neighbours that each input steps through as through one axis are joined.
  explicit Walk(std::initializer_list<Axis> axes) {
    for (const Axis& axis : axes) {
      if (axis.size == 1) continue;
      bool joined = inner.size > 1;
      for (size_t i = 0; i < Inputs; i++) joined = joined && inner.steps[i] == axis.steps[i] * axis.size;
      if (!joined && inner.size > 1) outer.push_back(inner);
      inner = {joined ? inner.size * axis.size : axis.size, axis.steps};
    }
  }
  int64_t rows() const {
    int64_t count = 1;
    for (const Axis& axis : outer) count *= axis.size;
    return count;
  }
  // Where a row of the inner axis begins in each input.
  Offsets at(int64_t row) const {
    Offsets offsets = start;
    for (size_t a = outer.size(); a-- > 0; row /= outer[a].size)
      for (size_t i = 0; i < Inputs; i++) offsets[i] += row % outer[a].size * outer[a].steps[i];
    return offsets;
  }
};

// Steps of a dense tensor along N, T, H, W, C.
inline std::array<int64_t, 5> stepsOf(const Shape& s) {
  return {s.t * s.h * s.w * s.c, s.h * s.w * s.c, s.w * s.c, s.c, 1};
}
inline std::array<int64_t, 5> sizesOf(const Shape& s) { return {s.n, s.t, s.h, s.w, s.c}; }

}  // namespace octconv
