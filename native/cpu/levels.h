// Instruction sets. A file with fast kernels is compiled once per level (CMakeLists.txt): each compile sees its
// `namespace octconv::OCTCONV_LEVEL`; the rest of the file stands behind `#if OCTCONV_MAIN` and is compiled once, for
// the baseline. The wide compiles include nothing but vec.h, so no wide code can slip into shared inline functions.
//
// Why not Highway: the kernels need load, store, splat and fused multiply-add, which vector types of g++ and clang
// give in 50 lines; Debian's Highway (1.0.3) has none of the int8 and bf16 dot products that would make it worth it.
#pragma once

namespace octconv {

enum class Level { baseline, avx2, avx512 };
inline constexpr const char* levelNames[] = {"baseline", "avx2", "avx512"};

// The widest level of this CPU, or the one that OCTCONV_ISA forces. Throws if the CPU or the build lacks it.
Level level();

}  // namespace octconv

// OCTCONV_PICK(name): octconv::<level>::name of the level in use.
#if defined(__x86_64__)
#define OCTCONV_PICK(name)                                                   \
  (::octconv::level() == ::octconv::Level::avx512 ? &::octconv::avx512::name \
   : ::octconv::level() == ::octconv::Level::avx2 ? &::octconv::avx2::name   \
                                                  : &::octconv::baseline::name)
// OCTCONV_DECLARE(int f(int)): declares f in every level's namespace.
#define OCTCONV_DECLARE(...)    \
  namespace octconv::baseline { \
  __VA_ARGS__;                  \
  }                             \
  namespace octconv::avx2 {     \
  __VA_ARGS__;                  \
  }                             \
  namespace octconv::avx512 {   \
  __VA_ARGS__;                  \
  }
#else
#define OCTCONV_PICK(name) (&::octconv::baseline::name)
#define OCTCONV_DECLARE(...)    \
  namespace octconv::baseline { \
  __VA_ARGS__;                  \
  }
#endif
