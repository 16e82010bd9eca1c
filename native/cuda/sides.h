// For what the host and kernels share.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define OCTCONV_BOTH __host__ __device__
#else
#define OCTCONV_BOTH
#endif
