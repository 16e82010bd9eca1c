// A stand-in for NVML, build/test/libnvidia-ml.so.1, which OCTCONV_NVML names: one GPU at 0000:00:00.0.
#include <cstring>

#define OCTCONV_SHOWN extern "C" [[gnu::visibility("default")]] int

static int gpu;

OCTCONV_SHOWN nvmlInit_v2() { return 0; }
OCTCONV_SHOWN nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** device) {
  constexpr int notFound = 6;
  if (std::strcmp(bus, "0000:00:00.0") != 0) return notFound;
  *device = &gpu;
  return 0;
}
OCTCONV_SHOWN nvmlDeviceGetClockInfo(void*, int clock, unsigned* mhz) {
  *mhz = clock == 1 ? 1410 : 1215;  // of the multiprocessors, of memory
  return 0;
}
OCTCONV_SHOWN nvmlDeviceGetTemperature(void*, int, unsigned* celsius) {
  constexpr int notSupported = 3;
  (void)celsius;
  return notSupported;
}
OCTCONV_SHOWN nvmlDeviceGetPowerUsage(void*, unsigned* milliwatts) {
  *milliwatts = 70500;
  return 0;
}
