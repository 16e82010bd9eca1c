// The CUDA driver, libcuda.so.1, found at run time: nothing is linked against it, and no CUDA header is needed. Only
// what is called here is declared. OCTCONV_CUDA_DRIVER names another library to open.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "../core/error.h"

namespace octconv::cuda {

// Types of the driver API (cuda.h), by the names that they have there.
using CUdevice = int;
using CUdeviceptr = uint64_t;
using CUcontext = struct CUctx_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using CUgraph = struct CUgraph_st*;
using CUgraphExec = struct CUgraphExec_st*;
using CUresult = int;  // 0: success

// X(name in the library, arguments). Each is `CUresult name(arguments)`.
#define OCTCONV_DRIVER_FUNCTIONS(X)                                                                          \
  X(cuInit, unsigned flags)                                                                                  \
  X(cuDriverGetVersion, int* version)                                                                        \
  X(cuGetErrorName, CUresult error, const char** name)                                                       \
  X(cuGetErrorString, CUresult error, const char** text)                                                     \
  X(cuDeviceGetCount, int* count)                                                                            \
  X(cuDeviceGet, CUdevice* device, int ordinal)                                                              \
  X(cuDeviceGetName, char* name, int length, CUdevice device)                                                \
  X(cuDeviceGetPCIBusId, char* bus, int length, CUdevice device)                                             \
  X(cuDeviceTotalMem_v2, size_t* bytes, CUdevice device)                                                     \
  X(cuDeviceGetAttribute, int* value, int attribute, CUdevice device)                                        \
  X(cuDevicePrimaryCtxRetain, CUcontext* context, CUdevice device)                                           \
  X(cuDevicePrimaryCtxSetFlags_v2, CUdevice device, unsigned flags)                                          \
  X(cuDevicePrimaryCtxRelease_v2, CUdevice device)                                                           \
  X(cuCtxPushCurrent_v2, CUcontext context)                                                                  \
  X(cuCtxPopCurrent_v2, CUcontext* context)                                                                  \
  X(cuModuleLoadData, CUmodule* module, const void* image)                                                   \
  X(cuModuleUnload, CUmodule module)                                                                         \
  X(cuModuleGetFunction, CUfunction* function, CUmodule module, const char* name)                            \
  X(cuFuncSetAttribute, CUfunction function, int attribute, int value)                                       \
  X(cuMemAlloc_v2, CUdeviceptr* pointer, size_t bytes)                                                       \
  X(cuMemFree_v2, CUdeviceptr pointer)                                                                       \
  X(cuMemHostAlloc, void** pointer, size_t bytes, unsigned flags)                                            \
  X(cuMemFreeHost, void* pointer)                                                                            \
  X(cuMemcpyHtoDAsync_v2, CUdeviceptr to, const void* from, size_t bytes, CUstream stream)                   \
  X(cuMemcpyDtoHAsync_v2, void* to, CUdeviceptr from, size_t bytes, CUstream stream)                         \
  X(cuMemcpyDtoDAsync_v2, CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)                   \
  X(cuMemsetD8Async, CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream)                     \
  X(cuStreamCreate, CUstream* stream, unsigned flags)                                                        \
  X(cuStreamDestroy_v2, CUstream stream)                                                                     \
  X(cuStreamSynchronize, CUstream stream)                                                                    \
  X(cuLaunchKernel, CUfunction function, unsigned gridX, unsigned gridY, unsigned gridZ, unsigned blockX,    \
    unsigned blockY, unsigned blockZ, unsigned sharedBytes, CUstream stream, void** arguments, void** extra) \
  X(cuEventCreate, CUevent* event, unsigned flags)                                                           \
  X(cuEventDestroy_v2, CUevent event)                                                                        \
  X(cuEventRecord, CUevent event, CUstream stream)                                                           \
  X(cuEventElapsedTime, float* milliseconds, CUevent begin, CUevent end)                                     \
  X(cuStreamBeginCapture_v2, CUstream stream, int mode)                                                      \
  X(cuStreamEndCapture, CUstream stream, CUgraph* graph)                                                     \
  X(cuGraphInstantiateWithFlags, CUgraphExec* executable, CUgraph graph, unsigned long long flags)           \
  X(cuGraphLaunch, CUgraphExec executable, CUstream stream)                                                  \
  X(cuGraphExecDestroy, CUgraphExec executable)                                                              \
  X(cuGraphDestroy, CUgraph graph)

// There is less memory than was asked for.
struct OutOfMemory : Error {
  using Error::Error;
};

struct Driver {
#define OCTCONV_MEMBER(name, ...) CUresult (*name)(__VA_ARGS__);
  OCTCONV_DRIVER_FUNCTIONS(OCTCONV_MEMBER)
#undef OCTCONV_MEMBER

  // Opened once. Throws the reason if there is none, if it lacks a function, or if it does not start.
  static const Driver& get();
  // Throws `what` with the driver's name for the error, unless there is none.
  void check(CUresult result, const std::string& what) const;
};

// Attributes (CUdevice_attribute, CUfunction_attribute) and flags that are used.
inline constexpr int computeCapabilityMajor = 75, computeCapabilityMinor = 76, multiprocessorCount = 16,
                     mostSharedBytes = 97;       // that a block may have
inline constexpr int maxDynamicSharedBytes = 8;  // of a function
inline constexpr unsigned nonBlockingStream = 1;
inline constexpr unsigned waitsAsleep =
    4;  // of a context (CU_CTX_SCHED_BLOCKING_SYNC): a thread that waits does not spin
inline constexpr CUresult contextIsActive = 708;
inline constexpr CUresult captureUnsupported = 900, captureInvalidated = 901;
inline constexpr int threadLocalCapture = 1;  // other threads may allocate memory meanwhile

}  // namespace octconv::cuda
