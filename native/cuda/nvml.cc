#include "nvml.h"

#include <dlfcn.h>

#include <cstdlib>

namespace octconv::cuda {
namespace {

// What is called of nvml.h, by the names that it has there. 0 is success.
using nvmlDevice_t = struct nvmlDevice_st*;
constexpr int smClock = 1, memoryClock = 2, gpuTemperature = 0;

struct Nvml {
  int (*nvmlInit_v2)();
  int (*nvmlDeviceGetHandleByPciBusId_v2)(const char* bus, nvmlDevice_t* device);
  int (*nvmlDeviceGetClockInfo)(nvmlDevice_t device, int clock, unsigned* mhz);
  int (*nvmlDeviceGetTemperature)(nvmlDevice_t device, int sensor, unsigned* celsius);
  int (*nvmlDeviceGetPowerUsage)(nvmlDevice_t device, unsigned* milliwatts);
  bool usable = false;

  Nvml() {
    const char* given = std::getenv("OCTCONV_NVML");
    void* library = dlopen(given && *given ? given : "libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);  // never closed
    const auto find = [&](const char* name, auto& function) {
      function = library ? reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name)) : nullptr;
      return function != nullptr;
    };
    usable = find("nvmlInit_v2", nvmlInit_v2) &&
             find("nvmlDeviceGetHandleByPciBusId_v2", nvmlDeviceGetHandleByPciBusId_v2) &&
             find("nvmlDeviceGetClockInfo", nvmlDeviceGetClockInfo) &&
             find("nvmlDeviceGetTemperature", nvmlDeviceGetTemperature) &&
             find("nvmlDeviceGetPowerUsage", nvmlDeviceGetPowerUsage) && nvmlInit_v2() == 0;
  }
};

}  // namespace

std::map<std::string, double> readings(const std::string& bus) {
  static const Nvml nvml;
  nvmlDevice_t device = nullptr;
  std::map<std::string, double> found;
  if (!nvml.usable || nvml.nvmlDeviceGetHandleByPciBusId_v2(bus.c_str(), &device) != 0) return found;
  unsigned value = 0;
  if (nvml.nvmlDeviceGetClockInfo(device, smClock, &value) == 0) found["smMHz"] = value;
  if (nvml.nvmlDeviceGetClockInfo(device, memoryClock, &value) == 0) found["memoryMHz"] = value;
  if (nvml.nvmlDeviceGetTemperature(device, gpuTemperature, &value) == 0) found["celsius"] = value;
  if (nvml.nvmlDeviceGetPowerUsage(device, &value) == 0) found["watts"] = value / 1e3;
  return found;
}

}  // namespace octconv::cuda
