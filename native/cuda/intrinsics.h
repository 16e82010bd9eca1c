// What kernels use of the machine, in one form for nvcc and for g++: there native/test/cuda has an emulator of it. GPUs
// before sm_80 have neither asynchronous copies nor products of bf16 and tf32.
#pragma once
#include "sides.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define OCTCONV_SM80 0
#else
#define OCTCONV_SM80 1  // what sm_80 brought is there
#endif

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
// x of the lane of the warp whose number differs in the bits of `mask`.
OCTCONV_DEVICE float shuffleXor(float x, int mask) { return __shfl_xor_sync(0xffffffff, x, mask); }

// --- Asynchronous copies into shared memory --------------------------------------------------------------------------

// 16 bytes, or zeros; they are there when the copy has ended, waitForCopies has returned and the block has
// synchronized. Between begin() and end() GPUs before sm_80 keep the bytes in registers.
class Copy16 {
 public:
  OCTCONV_DEVICE void begin(char* shared, const void* global, bool valid) {
#if OCTCONV_SM80
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
#else
    to = reinterpret_cast<uint4*>(shared);
    bytes = valid ? *static_cast<const uint4*>(global) : uint4{};
#endif
  }
  OCTCONV_DEVICE void end() {
#if !OCTCONV_SM80
    *to = bytes;
#endif
  }

#if !OCTCONV_SM80
 private:
  uint4 bytes, *to;
#endif
};
// Ends a group of copies.
OCTCONV_DEVICE void commitCopies() {
#if OCTCONV_SM80
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until all groups of this thread but the last `pending` are there.
template <int pending>
OCTCONV_DEVICE void waitForCopies() {
#if OCTCONV_SM80
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
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

// d[16 x 8] += a[16 x 16] b[16 x 8] in f16.
OCTCONV_DEVICE void multiplyF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if OCTCONV_SM80
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
  for (int half = 0; half < 2; half++)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[half * 2]), "r"(a[half * 2 + 1]), "r"(b[half]));
#endif
}
#if OCTCONV_SM80
// The same in bf16.
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
OCTCONV_DEVICE uint32_t roundToTf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}
#endif

// --- Conversions -----------------------------------------------------------------------------------------------------

OCTCONV_DEVICE float floatOfBits(uint32_t bits) { return __uint_as_float(bits); }
OCTCONV_DEVICE uint32_t bitsOfFloat(float x) { return __float_as_uint(x); }

OCTCONV_DEVICE float floatOfF16(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
// Two f32 as f16 or bf16, `low` in the low half, to the nearest, to even between two.
#if OCTCONV_SM80
OCTCONV_DEVICE uint32_t packF16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
OCTCONV_DEVICE uint32_t packBf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
#else
OCTCONV_DEVICE uint32_t packF16(float low, float high) {
  uint16_t halves[2];
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(halves[0]) : "f"(low));
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(halves[1]) : "f"(high));
  return static_cast<uint32_t>(halves[1]) << 16 | halves[0];
}
OCTCONV_DEVICE uint32_t roundToBf16(float x) {
  const uint32_t bits = bitsOfFloat(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
OCTCONV_DEVICE uint32_t packBf16(float low, float high) { return roundToBf16(high) << 16 | roundToBf16(low); }
#endif

}  // namespace octconv::cuda
#endif
