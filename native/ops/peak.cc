// peak: nothing but fused multiply-adds, on every thread; the output [1,1,1,1,1] is how many GFLOP that was. The benches
// divide by its time to say what share of the machine a kernel reaches.
#include "../cpu/levels.h"
#include "../cpu/vec.h"

OCTCONV_DECLARE(double multiplyAdd(int64_t rounds, float* sink))

namespace octconv::OCTCONV_LEVEL {

// 12 independent chains hide the latency of 4 or 5 cycles on two units; without FMA the compiler splits each in two.
double multiplyAdd(int64_t rounds, float* sink) {
  Vec sums[12];
  for (Vec& sum : sums) sum = splat(1);
  const Vec factor = splat(*sink), addend = splat(1e-9f);
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sums[j] = sums[j] * factor + addend;
  Vec total = sums[0];
  for (int j = 1; j < 12; j++) total += sums[j];
  store(sink, total, 1);
  return 1e-9 * 2 * 12 * lanes * static_cast<double>(rounds);
}

}  // namespace octconv::OCTCONV_LEVEL

#if OCTCONV_MAIN
#include "../core/op.h"

namespace octconv {
namespace {

Kernel make(const Node& node, Device) {
  node.want(0, 1);
  node.wantF32();
  if (node.out(0) != Shape{}) fail("peak: output ", node.out(0), ", wanted ", Shape{});
  return {[threads = node.threads, loop = OCTCONV_PICK(multiplyAdd)](Run& run) {
    std::vector<double> gflop(threads);
    run.parallel(threads, [&](int64_t task, char*) {
      float sink = 0.999f;
      gflop[task] = loop(2'000'000, &sink) + 0 * sink;
    });
    *run.out<float>(0) = 0;
    for (const double done : gflop) *run.out<float>(0) += static_cast<float>(done);
  }};
}

const Register op{"peak", make};

}  // namespace
}  // namespace octconv
#endif
