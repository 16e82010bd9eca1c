// build/no-driver/libcuda.so.1: what cuDNN is linked with of the CUDA driver, so that it can be loaded where there is
// none (tools/cudnn.mjs). Plans are made without it: each function says that there is no device.
extern "C" {
#define OCTCONV_NO_DEVICE(name) \
  int name() { return 100; }
OCTCONV_NO_DEVICE(cuGetErrorString)
OCTCONV_NO_DEVICE(cuModuleGetFunction)
OCTCONV_NO_DEVICE(cuModuleLoadData)
OCTCONV_NO_DEVICE(cuModuleUnload)
OCTCONV_NO_DEVICE(cuTensorMapEncodeIm2col)
OCTCONV_NO_DEVICE(cuTensorMapEncodeTiled)
}
