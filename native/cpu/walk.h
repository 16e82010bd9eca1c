// Loops of kernels over the elements of a dense result.
#pragma once
#include "../core/walk.h"
#include "kernel.h"

namespace octconv {

// Elements that a kernel takes at once: they and their f32 forms stay in the first cache.
inline constexpr int64_t tileElements = 1024;

// f(where the elements begin in each input, where in the result, how many, scratch) for pieces of rows, in parallel.
template <size_t Inputs, class F>
void eachTile(Run& run, const Walk<Inputs>& walk, const F& f) {
  const int64_t row = walk.inner.size, tile = std::min(row, tileElements), tiles = (row + tile - 1) / tile;
  const int64_t all = walk.rows() * tiles, parts = pieces(all, 1 + (1 << 16) / tile);
  run.parallel(parts, [&](int64_t task, char* scratch) {
    const auto [begin, end] = piece(all, parts, task);
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i % tiles * tile;
      auto offsets = walk.at(i / tiles);
      for (size_t k = 0; k < Inputs; k++) offsets[k] += first * walk.inner.steps[k];
      f(offsets, i / tiles * row + first, std::min(tile, row - first), scratch);
    }
  });
}

}  // namespace octconv
