// The files of CUDA kernels are read three times: by nvcc for GPUs, by g++ for the emulator (native/test/cuda), both
// with OCTCONV_KERNELS, and by g++ for the addon, which takes the host's part.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define OCTCONV_KERNELS 1
#define OCTCONV_BOTH __host__ __device__
#else
#define OCTCONV_BOTH
#endif
#if !defined(OCTCONV_KERNELS)
#define OCTCONV_KERNELS 0
#endif
