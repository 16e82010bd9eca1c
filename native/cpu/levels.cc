#include "levels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <string>

#include "../core/error.h"

namespace octconv {

#if defined(__x86_64__)
// By cpuid itself: zig's clang, which builds for musl, has no __builtin_cpu_supports.
struct Features {
  unsigned basic = 0;               // leaf 1, ecx
  unsigned wide[2] = {}, more = 0;  // leaf 7, ebx and ecx, and of its second part eax
  unsigned saved = 0;               // registers that the system saves: XCR0
};

static Features features() {
  Features found;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d)) found.basic = c;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) found.wide[0] = b, found.wide[1] = c;
  if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.more = a;
  constexpr unsigned osxsave = 1u << 27;
  if (found.basic & osxsave) asm volatile("xgetbv" : "=a"(found.saved), "=d"(d) : "c"(0));
  return found;
}
#endif

static bool supported(Level level) {
  if (level == Level::baseline) return true;
#if defined(__x86_64__)
#if defined(OCTCONV_UP_TO_AVX2)
  if (level > Level::avx2) return false;
#elif defined(OCTCONV_EMULATE_AVX512)
  level = Level::avx2;
#endif
  static const Features cpu = features();
  const auto has = [](unsigned word, std::initializer_list<int> bits) {
    return std::all_of(bits.begin(), bits.end(), [&](int bit) { return word >> bit & 1; });
  };
  bool all = has(cpu.saved, {1, 2}) && has(cpu.basic, {12}) && has(cpu.wide[0], {5});  // fma, avx2
  if (level >= Level::avx512)
    all = all && has(cpu.saved, {5, 6, 7}) && has(cpu.wide[0], {16, 17, 30, 31});  // f dq bw vl
  if (level >= Level::avx512vnni) all = all && has(cpu.wide[1], {11});
  if (level >= Level::avx512bf16) all = all && has(cpu.more, {5});
  return all;
#else
  return false;
#endif
}

static Level choose() {
  const char* forced = std::getenv("OCTCONV_ISA");
  for (const Level level : {Level::avx512bf16, Level::avx512vnni, Level::avx512, Level::avx2, Level::baseline}) {
    if (forced && *forced ? std::string(forced) != levelNames[static_cast<int>(level)] : !supported(level)) continue;
    if (!supported(level)) fail("OCTCONV_ISA: '", forced, "' is not supported by this CPU");
    return level;
  }
  fail("OCTCONV_ISA: '", forced, "' is unknown, wanted baseline, avx2, avx512, avx512vnni or avx512bf16");
}

Level level() {
  static const Level chosen = choose();
  return chosen;
}

}  // namespace octconv
