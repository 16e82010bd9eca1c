// What a run saw of a value, for quantization.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace octconv {

class Crew;

// How many numbers are in each of equal bins over [-limit, limit).
struct Histogram {
  static constexpr int64_t bins = 1 << 14;  // `bins` of lib/quantize.ts

  std::vector<uint32_t> counts = std::vector<uint32_t>(bins);
  double limit = 0x1p-32;       // a power of two above all that was seen
  float least = 0, most = 0;    // 0 is always among them
  int64_t elements = 0;         // all that were given
  int64_t firstNotFinite = -1;  // position of one among them; what is given from there on is not counted

  void add(std::span<const float> data, Crew& crew);

 private:
  void widen(bool counted);
};

}  // namespace octconv
