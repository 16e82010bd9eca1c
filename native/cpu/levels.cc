#include "levels.h"

#include <cstdlib>
#include <string>

#include "../core/error.h"

namespace octconv {

static bool supported(Level level) {
  if (level == Level::baseline) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(OCTCONV_UP_TO_AVX2)
  if (level > Level::avx2) return false;
#elif defined(OCTCONV_EMULATE_AVX512)
  level = Level::avx2;
#endif
  bool all = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (level >= Level::avx512)
    all = all && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (level >= Level::avx512vnni) all = all && __builtin_cpu_supports("avx512vnni");
  if (level >= Level::avx512bf16) all = all && __builtin_cpu_supports("avx512bf16");
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
