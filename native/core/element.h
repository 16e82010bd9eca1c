// Elements that C++20 has no type for. Includes no standard header but the compiler's own: wide compiles see it.
#pragma once
#include <stdint.h>

namespace octconv {

enum class DType { f32, f16, bf16, i8, u8, i32 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace octconv
