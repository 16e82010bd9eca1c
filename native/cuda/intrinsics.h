// What kernels use of the machine, in one form for nvcc and for g++: there native/test/cuda has an emulator of it.
#pragma once
#include "sides.h"

#if defined(__CUDACC__)
#define OCTCONV_DEVICE __device__ __forceinline__
#define OCTCONV_KERNEL extern "C" __global__
#else
#define OCTCONV_DEVICE inline
#define OCTCONV_KERNEL extern "C"
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
#endif

namespace octconv::cuda {
// Words that are read or written at once.
template <int count>
struct alignas(4 * count) Words {
  uint32_t word[count];
};
}  // namespace octconv::cuda

#if !defined(__CUDACC__)
#include "emulator.h"
#else

namespace octconv::cuda {

OCTCONV_DEVICE int threadIndex() { return static_cast<int>(threadIdx.x); }
OCTCONV_DEVICE int blockIndex() { return static_cast<int>(blockIdx.x); }

// The block's dynamic shared memory.
OCTCONV_DEVICE char* sharedMemory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}
OCTCONV_DEVICE void synchronize() { __syncthreads(); }

// --- Asynchronous copies into shared memory --------------------------------------------------------------------------

// 16 bytes, or zeros; they are there when waitForCopies has returned and the block has synchronized.
OCTCONV_DEVICE void copy16(char* shared, const void* global, bool valid) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
// Ends a group of copies.
OCTCONV_DEVICE void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all groups of this thread but the last `pending` are there.
template <int pending>
OCTCONV_DEVICE void waitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// --- Tensor cores ----------------------------------------------------------------------------------------------------

// Four matrices of 8 rows x 16 bytes: lane l names row l % 8 of matrix l / 8; a lane gets bytes 4 * (l % 4) of row l /
// 4 of each.
OCTCONV_DEVICE void loadMatrices(uint32_t (&to)[4], const char* row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// d[16 x 8] += a[16 x 16] b[16 x 8] in bf16.
OCTCONV_DEVICE void multiplyBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d[16 x 8] += a[16 x 8] b[8 x 8] in tf32, which are f32 that were rounded by roundToTf32.
OCTCONV_DEVICE void multiplyTf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// --- Conversions -----------------------------------------------------------------------------------------------------

// Two f32 as bf16, `low` in the low half, to the nearest, to even between two.
OCTCONV_DEVICE uint32_t packBf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
OCTCONV_DEVICE uint32_t roundToTf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}
OCTCONV_DEVICE float floatOfBits(uint32_t bits) { return __uint_as_float(bits); }
OCTCONV_DEVICE uint32_t bitsOfFloat(float x) { return __float_as_uint(x); }

}  // namespace octconv::cuda
#endif
