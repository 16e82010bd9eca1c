#include "peak.h"

#include "vec.h"

namespace octconv::OCTCONV_LEVEL {

// 12 independent chains hide a latency of 4 or 5 cycles on two units; without FMA the compiler splits each in two.
double multiplyAdds(int64_t rounds) {
  Vec sums[12];
  for (Vec& sum : sums) sum = splat(1);
  const Vec factor = splat(0.999f), addend = splat(1e-9f);
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sums[j] = multiplyAdd(sums[j], factor, addend);
  for (const Vec& sum : sums) asm volatile("" : : "m"(sum));  // the results are wanted
  return 2.0 * 12 * lanes * static_cast<double>(rounds);
}

}  // namespace octconv::OCTCONV_LEVEL

#if OCTCONV_MAIN
#include <algorithm>
#include <chrono>
#include <vector>

#include "../core/threads.h"

namespace octconv {

double measurePeak(Crew& crew) {
  using Clock = std::chrono::steady_clock;
  const auto loop = OCTCONV_PICK(multiplyAdds);
  std::vector<double> flops(static_cast<size_t>(crew.threads));
  double best = 0;
  for (int i = 0; i < 64; i++) {
    const auto start = Clock::now();
    crew.parallel(crew.threads, [&](int64_t task, int) { flops[static_cast<size_t>(task)] = loop(500'000); });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    double all = 0;
    for (const double some : flops) all += some;
    best = std::max(best, all / seconds);
  }
  return 1e-9 * best;
}

}  // namespace octconv
#endif
