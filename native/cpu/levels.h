// Instruction sets. A file with fast kernels is compiled once per level (CMakeLists.txt): each compile sees its
// `namespace octconv::OCTCONV_LEVEL`; the rest of the file stands behind `#if OCTCONV_MAIN` and is compiled once, for
// the baseline. The wide compiles include nothing but vec.h, so no wide code can slip into shared inline functions.
//
// Why not Highway: the kernels need load, store, splat, multiply-add and two dot products, which vector types of g++
// and clang and a few intrinsics give in 150 lines; Debian's Highway (1.0.3) has none of the dot products that would
// make it worth it.
#pragma once

namespace octconv {

// vnni: AVX-512 with dot products of bytes (Cascade Lake, Ice Lake); bf16: also of bf16 (Cooper Lake, Sapphire Rapids,
// Zen 4).
enum class Level { baseline, avx2, avx512, avx512vnni, avx512bf16 };
inline constexpr const char* levelNames[] = {"baseline", "avx2", "avx512", "avx512vnni", "avx512bf16"};

// The widest level of this CPU, or the one that OCTCONV_ISA forces. Throws if the CPU or the build lacks it.
Level level();

}  // namespace octconv

// OCTCONV_PICK(name): octconv::<level>::name of the level in use.
// OCTCONV_DECLARE(int f(int)): declares f in every level's namespace.
#define OCTCONV_DECLARE_IN(level, ...) \
  namespace octconv::level {           \
  __VA_ARGS__;                         \
  }
#if defined(OCTCONV_UP_TO_AVX2)
#define OCTCONV_PICK(name) \
  (::octconv::level() == ::octconv::Level::avx2 ? &::octconv::avx2::name : &::octconv::baseline::name)
#define OCTCONV_DECLARE(...)                \
  OCTCONV_DECLARE_IN(baseline, __VA_ARGS__) \
  OCTCONV_DECLARE_IN(avx2, __VA_ARGS__)
#elif defined(__x86_64__)
#define OCTCONV_PICK(name)                                                             \
  (::octconv::level() == ::octconv::Level::avx512bf16   ? &::octconv::avx512bf16::name \
   : ::octconv::level() == ::octconv::Level::avx512vnni ? &::octconv::avx512vnni::name \
   : ::octconv::level() == ::octconv::Level::avx512     ? &::octconv::avx512::name     \
   : ::octconv::level() == ::octconv::Level::avx2       ? &::octconv::avx2::name       \
                                                        : &::octconv::baseline::name)
#define OCTCONV_DECLARE(...)                  \
  OCTCONV_DECLARE_IN(baseline, __VA_ARGS__)   \
  OCTCONV_DECLARE_IN(avx2, __VA_ARGS__)       \
  OCTCONV_DECLARE_IN(avx512, __VA_ARGS__)     \
  OCTCONV_DECLARE_IN(avx512vnni, __VA_ARGS__) \
  OCTCONV_DECLARE_IN(avx512bf16, __VA_ARGS__)
#else
#define OCTCONV_PICK(name) (&::octconv::baseline::name)
#define OCTCONV_DECLARE(...) OCTCONV_DECLARE_IN(baseline, __VA_ARGS__)
#endif
