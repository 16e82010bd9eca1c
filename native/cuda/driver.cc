#include "driver.h"

#include <dlfcn.h>

#include <cstdlib>

namespace octconv::cuda {

// The oldest driver that has all of the functions and loads a fatbin of CUDA 13.
static constexpr int oldestVersion = 13000;

static Driver open() {
  const char* given = std::getenv("OCTCONV_CUDA_DRIVER");
  if (given && !*given) given = nullptr;
  const char* file = given ? given : "libcuda.so.1";
  void* library = dlopen(file, RTLD_NOW | RTLD_LOCAL);  // never closed
  if (!library) {
    const char* why = given ? dlerror() : "libcuda.so.1 is not there";
    fail("cuda: no NVIDIA driver: ", why);
  }
  Driver driver{};
#define OCTCONV_FIND(name, ...)                                                 \
  driver.name = reinterpret_cast<decltype(driver.name)>(dlsym(library, #name)); \
  if (!driver.name) fail("cuda: ", file, " is too old, it has no ", #name);
  OCTCONV_DRIVER_FUNCTIONS(OCTCONV_FIND)
#undef OCTCONV_FIND
  int version = 0;
  driver.check(driver.cuDriverGetVersion(&version), "cuda: version of the driver");
  const auto print = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  if (version < oldestVersion)
    fail("cuda: the driver is for CUDA ", print(version), ", wanted ", print(oldestVersion), " or newer");
  driver.check(driver.cuInit(0), "cuda: start of the driver");
  return driver;
}

const Driver& Driver::get() {
  static const Driver driver = open();  // after an error the next call tries again
  return driver;
}

void Driver::check(CUresult result, const std::string& what) const {
  if (result == 0) return;
  const char *name = nullptr, *text = nullptr;
  cuGetErrorName(result, &name);
  cuGetErrorString(result, &text);
  const std::string why = name ? name : "error " + std::to_string(result);
  const std::string whole = oneLine(what + ": " + why + (text ? std::string(", ") + text : ""));
  constexpr CUresult outOfMemory = 2;
  if (result == outOfMemory) throw OutOfMemory(whole);
  throw Error(whole);
}

}  // namespace octconv::cuda
