// Tests of the stand-in for the CUDA driver (native/test/cuda/driver.cc), run by test/cuda-driver.test.ts:
// `cuda-driver-test LIBRARY` lists them, one a line; `cuda-driver-test LIBRARY NAME` runs one.
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda/driver.h"

using namespace octconv::cuda;

#define SUCCEED(call) CHECK((call) == 0)

namespace {

const char* library;

struct Opened : Driver {
  int (*live)();

  // `settings`: of the environment, in pairs.
  explicit Opened(const std::vector<const char*>& settings = {}) {
    for (size_t i = 0; i < settings.size(); i += 2) setenv(settings[i], settings[i + 1], 1);
    void* const handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle) std::printf("%s\n", dlerror()), std::exit(1);
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
      if (!function) std::printf("%s is missing\n", name), std::exit(1);
    };
#define OCTCONV_FIND(name, ...) find(name, #name);
    OCTCONV_DRIVER_FUNCTIONS(OCTCONV_FIND)
    find(live, "standInLive");
  }
};

// With a context, a module and a stream.
struct Started : Opened {
  CUcontext context;
  CUmodule module;
  CUstream stream;
  CUfunction fill, stick;

  explicit Started(const std::vector<const char*>& settings = {}) : Opened(settings) {
    SUCCEED(cuInit(0));
    SUCCEED(cuDevicePrimaryCtxRetain(&context, 0));
    SUCCEED(cuCtxPushCurrent_v2(context));
    SUCCEED(cuModuleLoadData(&module, "stand-in compute_75"));
    SUCCEED(cuModuleGetFunction(&fill, module, "fill"));
    SUCCEED(cuModuleGetFunction(&stick, module, "stick"));
    SUCCEED(cuStreamCreate(&stream, nonBlockingStream));
  }

  CUresult launchFill(CUdeviceptr x, float y, int n, CUstream on) const {
    void* arguments[] = {&x, &y, &n};
    return cuLaunchKernel(fill, static_cast<unsigned>(n + 63) / 64, 1, 1, 64, 1, 1, 0, on, arguments, nullptr);
  }
};

// The exit code or the negative signal of `body` in a process of its own.
int inChild(const std::function<void()>& body) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    body();
    std::exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

std::string contents(const std::string& file) {
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct TemporaryFile {
  std::string name = "/tmp/octconv-stand-in-XXXXXX";

  TemporaryFile() { close(mkstemp(name.data())); }
  ~TemporaryFile() { unlink(name.c_str()); }
};

// --- Work ------------------------------------------------------------------------------------------------------------

void deferred() {
  const Started d;
  constexpr int n = 100;
  CUdeviceptr x, y;
  void* memory;
  SUCCEED(d.cuMemAlloc_v2(&x, n * 4));
  SUCCEED(d.cuMemAlloc_v2(&y, n * 4));
  SUCCEED(d.cuMemHostAlloc(&memory, n * 8, 0));
  auto* const from = static_cast<float*>(memory);
  float* const to = from + n;
  CHECK(to[0] != to[0]);
  CUevent begin, end;
  SUCCEED(d.cuEventCreate(&begin, 0));
  SUCCEED(d.cuEventCreate(&end, 0));
  float milliseconds;
  CHECK(d.cuEventElapsedTime(&milliseconds, begin, end) == 400);
  SUCCEED(d.cuEventRecord(begin, d.stream));
  SUCCEED(d.cuMemcpyHtoDAsync_v2(x, from, n * 4, d.stream));
  SUCCEED(d.launchFill(x, 3, n / 2, d.stream));
  SUCCEED(d.cuMemsetD8Async(x + 4, 0, 4, d.stream));
  SUCCEED(d.cuMemcpyDtoDAsync_v2(y, x, n * 4, d.stream));
  SUCCEED(d.cuMemcpyDtoHAsync_v2(to, y, n * 4, d.stream));
  SUCCEED(d.cuEventRecord(end, d.stream));
  for (int i = 0; i < n; i++) from[i] = static_cast<float>(i);  // what is copied is what is there in the end
  CHECK(to[0] != to[0]);
  CHECK(d.cuEventElapsedTime(&milliseconds, begin, end) == 600);
  SUCCEED(d.cuStreamSynchronize(d.stream));
  for (int i = 0; i < n; i++) CHECK(to[i] == (i == 1 ? 0 : i < n / 2 ? 3 : static_cast<float>(i)));
  SUCCEED(d.cuEventElapsedTime(&milliseconds, begin, end));
  CHECK(milliseconds >= 0);

  CHECK(d.live() == 8);
  SUCCEED(d.cuEventDestroy_v2(begin));
  SUCCEED(d.cuEventDestroy_v2(end));
  SUCCEED(d.cuMemFree_v2(x));
  SUCCEED(d.cuMemFree_v2(y));
  SUCCEED(d.cuMemFreeHost(memory));
  SUCCEED(d.cuStreamDestroy_v2(d.stream));
  SUCCEED(d.cuModuleUnload(d.module));
  SUCCEED(d.cuDevicePrimaryCtxRelease_v2(0));
  CHECK(d.live() == 0);
  CHECK(d.cuMemAlloc_v2(&x, 1) == 709);
  CHECK(d.cuCtxPushCurrent_v2(d.context) == 201);
}

void streams() {
  std::set<int> results;
  for (int seed = 0; seed < 16; seed++)
    results.insert(inChild([&] {
      const std::string text = std::to_string(seed);
      const Started d({"OCTCONV_STAND_IN_SEED", text.c_str()});
      CUstream other;
      CUdeviceptr x;
      void* memory;
      SUCCEED(d.cuStreamCreate(&other, 0));
      SUCCEED(d.cuMemAlloc_v2(&x, 4));
      SUCCEED(d.cuMemHostAlloc(&memory, 4, 0));
      SUCCEED(d.cuMemsetD8Async(x, 3, 4, other));
      SUCCEED(d.cuMemsetD8Async(x, 4, 4, d.stream));
      SUCCEED(d.cuMemcpyDtoHAsync_v2(memory, x, 4, d.stream));
      SUCCEED(d.cuStreamSynchronize(d.stream));
      std::_Exit(static_cast<char*>(memory)[0]);
    }));
  CHECK((results == std::set<int>{3, 4}));
}

void threads() {
  const Started d;
  const auto work = [&](CUstream stream) {
    SUCCEED(d.cuCtxPushCurrent_v2(d.context));
    for (int round = 1; round <= 20; round++) {
      CUdeviceptr x;
      void* memory;
      SUCCEED(d.cuMemAlloc_v2(&x, 256));
      SUCCEED(d.cuMemHostAlloc(&memory, 256, 0));
      SUCCEED(d.cuMemsetD8Async(x, 0, 256, stream));
      SUCCEED(d.launchFill(x, static_cast<float>(round), 64, stream));
      SUCCEED(d.cuMemcpyDtoHAsync_v2(memory, x, 256, stream));
      SUCCEED(d.cuStreamSynchronize(stream));
      for (int i = 0; i < 64; i++) CHECK(static_cast<float*>(memory)[i] == static_cast<float>(round));
      SUCCEED(d.cuMemFreeHost(memory));
      SUCCEED(d.cuMemFree_v2(x));
    }
  };
  CUstream other;
  SUCCEED(d.cuStreamCreate(&other, 0));
  std::thread thread(work, other);
  work(d.stream);
  thread.join();
  CHECK(d.live() == 4);
}

void kernelFails() {
  const Started d;
  CUdeviceptr x;
  SUCCEED(d.cuMemAlloc_v2(&x, 4));
  SUCCEED(d.cuLaunchKernel(d.stick, 1, 1, 1, 2, 1, 1, 0, d.stream, nullptr, nullptr));
  CHECK(d.cuStreamSynchronize(d.stream) == 719);
  CHECK(d.cuMemsetD8Async(x, 0, 4, d.stream) == 719);
  CHECK(d.cuMemFree_v2(x) == 719);
  CHECK(d.cuStreamDestroy_v2(d.stream) == 719);
  CHECK(d.cuModuleUnload(d.module) == 719);
  SUCCEED(d.cuDevicePrimaryCtxRelease_v2(0));
  CHECK(d.live() == 0);
  CUcontext fresh;
  SUCCEED(d.cuDevicePrimaryCtxRetain(&fresh, 0));
  SUCCEED(d.cuCtxPushCurrent_v2(fresh));
  SUCCEED(d.cuMemAlloc_v2(&x, 4));
}

void graphs() {
  const Started d;
  CUdeviceptr x;
  void* memory;
  CUgraph graph;
  CUgraphExec executable;
  SUCCEED(d.cuMemAlloc_v2(&x, 4));
  SUCCEED(d.cuMemHostAlloc(&memory, 4, 0));
  const auto value = [&] {
    SUCCEED(d.cuMemcpyDtoHAsync_v2(memory, x, 4, d.stream));
    SUCCEED(d.cuStreamSynchronize(d.stream));
    return *static_cast<float*>(memory);
  };
  SUCCEED(d.cuMemsetD8Async(x, 0, 4, d.stream));
  CHECK(d.cuStreamEndCapture(d.stream, &graph) == 401);
  SUCCEED(d.cuStreamBeginCapture_v2(d.stream, threadLocalCapture));
  CHECK(d.cuStreamBeginCapture_v2(d.stream, threadLocalCapture) == 401);
  SUCCEED(d.launchFill(x, 3, 1, d.stream));
  SUCCEED(d.launchFill(x, 4, 1, d.stream));
  CHECK(d.cuMemcpyDtoHAsync_v2(memory, x, 4, d.stream) == 900);
  std::thread([&] {
    SUCCEED(d.cuCtxPushCurrent_v2(d.context));
    CUdeviceptr other;
    SUCCEED(d.cuMemAlloc_v2(&other, 4));  // that another thread captures is nothing to it
    SUCCEED(d.cuMemFree_v2(other));
    CHECK(d.cuStreamEndCapture(d.stream, &graph) == 908);
  }).join();
  SUCCEED(d.cuStreamEndCapture(d.stream, &graph));
  SUCCEED(d.cuGraphInstantiateWithFlags(&executable, graph, 0));
  CHECK(d.live() == 7);
  SUCCEED(d.cuGraphDestroy(graph));
  CHECK(d.cuGraphInstantiateWithFlags(&executable, graph, 0) == 1);
  CHECK(value() == 0);  // what is captured is not done
  for (int round = 0; round < 2; round++) {
    SUCCEED(d.cuMemsetD8Async(x, 0, 4, d.stream));
    SUCCEED(d.cuGraphLaunch(executable, d.stream));
    CHECK(value() == 4);
  }
  SUCCEED(d.cuGraphExecDestroy(executable));
  CHECK(d.cuGraphLaunch(executable, d.stream) == 400);
  CHECK(d.live() == 5);

  CUdeviceptr y;
  SUCCEED(d.cuStreamBeginCapture_v2(d.stream, threadLocalCapture));
  CHECK(d.cuMemAlloc_v2(&y, 4) == 900);
  CHECK(d.cuStreamEndCapture(d.stream, &graph) == 901 && !graph);
  SUCCEED(d.cuMemAlloc_v2(&y, 4));
}

// --- Memory ----------------------------------------------------------------------------------------------------------

void deviceMemoryFaults() {
  const auto touch = [](bool wait) {
    return inChild([&] {
      const Started d;
      CUdeviceptr x;
      SUCCEED(d.cuMemAlloc_v2(&x, 4));
      SUCCEED(d.cuMemsetD8Async(x, 0, 4, d.stream));
      if (wait) SUCCEED(d.cuStreamSynchronize(d.stream));
      if (!freopen("/dev/null", "w", stderr)) return;  // AddressSanitizer tells of the fault
      *reinterpret_cast<volatile char*>(x) = 1;
    });
  };
  CHECK(touch(false) != 0);
  CHECK(touch(true) != 0);
}

void bounds() {
  const Started d;
  CUdeviceptr x;
  void* memory;
  SUCCEED(d.cuMemAlloc_v2(&x, 100));
  CHECK(x % 256 == 0);
  SUCCEED(d.cuMemHostAlloc(&memory, 100, 0));
  auto* const host = static_cast<char*>(memory);
  SUCCEED(d.cuMemcpyHtoDAsync_v2(x + 10, host, 90, d.stream));
  CHECK(d.cuMemcpyHtoDAsync_v2(x + 10, host, 91, d.stream) == 1);
  CHECK(d.cuMemcpyHtoDAsync_v2(x - 1, host, 1, d.stream) == 1);
  CHECK(d.cuMemcpyHtoDAsync_v2(x, host + 1, 100, d.stream) == 1);
  CHECK(d.cuMemcpyDtoHAsync_v2(host + 1, x, 100, d.stream) == 1);
  CHECK(d.cuMemsetD8Async(x + 100, 0, 1, d.stream) == 1);
  static char unpinned[4];
  CHECK(d.cuMemcpyHtoDAsync_v2(x, unpinned, 4, d.stream) == 1);
  CHECK(d.cuMemcpyDtoDAsync_v2(x, x + 10, 91, d.stream) == 1);
  CHECK(d.cuMemcpyDtoDAsync_v2(x + 10, x, 91, d.stream) == 1);
  CHECK(d.cuMemFree_v2(x + 1) == 1);
  CHECK(d.cuMemFreeHost(host + 1) == 1);

#if !defined(__SANITIZE_ADDRESS__)            // which sees it when it happens
  SUCCEED(d.launchFill(x, 1, 26, d.stream));  // 104 bytes
  CHECK(d.cuMemFree_v2(x) == 700);
  SUCCEED(d.cuMemAlloc_v2(&x, 100));
  SUCCEED(d.launchFill(x - 4, 1, 26, d.stream));
  CHECK(d.cuMemFree_v2(x) == 700);
#endif
}

void memoryEnds() {
  const Started d({"OCTCONV_STAND_IN_MEMORY", "1000"});
  size_t bytes;
  SUCCEED(d.cuDeviceTotalMem_v2(&bytes, 0));
  CHECK(bytes == 1000);
  CUdeviceptr x, y;
  SUCCEED(d.cuMemAlloc_v2(&x, 600));
  CHECK(d.cuMemAlloc_v2(&y, 401) == 2);
  SUCCEED(d.cuMemAlloc_v2(&y, 400));
  SUCCEED(d.cuMemFree_v2(x));
  SUCCEED(d.cuMemAlloc_v2(&x, 1));
}

// --- Errors ----------------------------------------------------------------------------------------------------------

void errors() {
  const Opened d({"OCTCONV_STAND_IN_DEVICES", "2", "OCTCONV_STAND_IN_CAPABILITY", "8.6"});
  int value;
  CUdeviceptr x;
  const char* text;
  CHECK(d.cuDeviceGetCount(&value) == 3);
  SUCCEED(d.cuDriverGetVersion(&value));
  CHECK(value == 13000);
  SUCCEED(d.cuGetErrorName(719, &text));
  CHECK(strcmp(text, "CUDA_ERROR_LAUNCH_FAILED") == 0);
  SUCCEED(d.cuGetErrorString(2, &text));
  CHECK(strcmp(text, "out of memory") == 0);
  CHECK(d.cuGetErrorName(-1, &text) == 1 && !text);
  CHECK(d.cuInit(1) == 1);
  SUCCEED(d.cuInit(0));
  SUCCEED(d.cuDeviceGetCount(&value));
  CHECK(value == 2);
  CHECK(d.cuDeviceGet(&value, 2) == 101);
  SUCCEED(d.cuDeviceGetAttribute(&value, computeCapabilityMajor, 1));
  CHECK(value == 8);
  SUCCEED(d.cuDeviceGetAttribute(&value, computeCapabilityMinor, 1));
  CHECK(value == 6);
  char name[6];
  SUCCEED(d.cuDeviceGetName(name, 6, 1));
  CHECK(strcmp(name, "stand") == 0);
  CHECK(d.cuMemAlloc_v2(&x, 4) == 201);
  CHECK(d.cuDevicePrimaryCtxRelease_v2(1) == 201);
  CHECK(d.cuDevicePrimaryCtxSetFlags_v2(2, waitsAsleep) == 101);
  CHECK(d.cuDevicePrimaryCtxSetFlags_v2(1, 8) == 1);
  SUCCEED(d.cuDevicePrimaryCtxSetFlags_v2(1, waitsAsleep));

  CUcontext contexts[2];
  SUCCEED(d.cuDevicePrimaryCtxRetain(&contexts[0], 0));
  SUCCEED(d.cuDevicePrimaryCtxRetain(&contexts[1], 1));
  CHECK(d.cuDevicePrimaryCtxSetFlags_v2(1, waitsAsleep) == contextIsActive);
  SUCCEED(d.cuCtxPushCurrent_v2(contexts[0]));
  CUmodule module;
  CUfunction function;
  CUstream stream;
  const uint32_t fatbin = 0xBA55ED50;
  CHECK(d.cuModuleLoadData(&module, "something") == 200);
  SUCCEED(d.cuModuleLoadData(&module, &fatbin));
  CHECK(d.cuModuleGetFunction(&function, module, "subtract") == 500);
  SUCCEED(d.cuModuleGetFunction(&function, module, "fill"));
  SUCCEED(d.cuStreamCreate(&stream, 0));
  SUCCEED(d.cuMemAlloc_v2(&x, 4));

  float y = 0;
  int n = 1;
  void* arguments[] = {&x, &y, &n};
  const auto launch = [&](unsigned grid, unsigned block, unsigned sharedBytes) {
    return d.cuLaunchKernel(function, grid, 1, 1, block, 1, 1, sharedBytes, stream, arguments, nullptr);
  };
  SUCCEED(launch(1, 64, 49152));
  CHECK(launch(1, 64, 49153) == 1);
  CHECK(d.cuFuncSetAttribute(function, maxDynamicSharedBytes, 99 * 1024 + 1) == 1);
  SUCCEED(d.cuFuncSetAttribute(function, maxDynamicSharedBytes, 99 * 1024));
  SUCCEED(launch(1, 64, 99 * 1024));
  CHECK(launch(0, 64, 0) == 1);
  CHECK(launch(1, 0, 0) == 1);
  CHECK(launch(1, 1025, 0) == 1);
  CHECK(launch(1, 65, 0) == 701);
  arguments[1] = nullptr;
  CHECK(launch(1, 64, 0) == 1);
  arguments[1] = &y;

  SUCCEED(d.cuCtxPushCurrent_v2(contexts[1]));
  CHECK(launch(1, 64, 0) == 400);
  CHECK(d.cuStreamSynchronize(stream) == 400);
}

void noDevice() {
  const Opened d({"OCTCONV_STAND_IN_DEVICES", "0"});
  CHECK(d.cuInit(0) == 100);
}
void oldDevice() {
  const Opened d({"OCTCONV_STAND_IN_CAPABILITY", "7.0"});
  CUcontext context;
  CUmodule module;
  SUCCEED(d.cuInit(0));
  SUCCEED(d.cuDevicePrimaryCtxRetain(&context, 0));
  SUCCEED(d.cuCtxPushCurrent_v2(context));
  CHECK(d.cuModuleLoadData(&module, "stand-in compute_75") == 209);
}

// Ends with the first error, after having given back what it has.
CUresult workload(const Opened& d) {
  CUcontext context;
  CUmodule module;
  CUstream stream;
  CUdeviceptr x;
  CUresult error, first = 0;
  const auto keep = [&](CUresult result) {
    if (!first) first = result;
    return result;
  };
  if ((error = d.cuInit(0))) return error;
  if ((error = d.cuDevicePrimaryCtxSetFlags_v2(0, waitsAsleep))) return error;
  if ((error = d.cuDevicePrimaryCtxRetain(&context, 0))) return error;
  if (!keep(d.cuCtxPushCurrent_v2(context))) {
    if (!keep(d.cuModuleLoadData(&module, "stand-in compute_75"))) {
      if (!keep(d.cuStreamCreate(&stream, 0))) {
        if (!keep(d.cuMemAlloc_v2(&x, 64))) {
          keep(d.cuMemsetD8Async(x, 0, 64, stream));
          keep(d.cuStreamSynchronize(stream));
          keep(d.cuMemFree_v2(x));
        }
        keep(d.cuStreamDestroy_v2(stream));
      }
      keep(d.cuModuleUnload(module));
    }
  }
  keep(d.cuDevicePrimaryCtxRelease_v2(0));
  return first;
}

void injection() {
  const TemporaryFile report;
  const auto runWith = [&](int n, int error) {
    const std::string fail = std::to_string(n) + ":" + std::to_string(error);
    const int code = inChild([&] {
      const Opened d({"OCTCONV_STAND_IN_FAIL", fail.c_str(), "OCTCONV_STAND_IN_REPORT", report.name.c_str()});
      CHECK(workload(d) == (n == 0 ? 0 : error));
    });
    CHECK(code == 0);
    return contents(report.name);
  };
  const std::string none =
      "\"launches\": 0, \"graphLaunches\": 0, \"spins\": 0, \"bytesToDevice\": 0, \"bytesToHost\": 0, \"errors\": "
      "\"\", \"live\": "
      "{\"contexts\": 0, \"modules\": 0, \"streams\": 0, \"events\": 0, \"graphs\": 0, \"executables\": 0, "
      "\"allocations\": 0, \"pinned\": 0, \"cudnn\": 0}}\n";
  CHECK(runWith(0, 2) ==
        "{\"slowOnMain\": [\"cuDevicePrimaryCtxRelease_v2\", \"cuDevicePrimaryCtxRetain\", \"cuMemAlloc_v2\", "
        "\"cuMemFree_v2\", "
        "\"cuModuleLoadData\", \"cuModuleUnload\", \"cuStreamDestroy_v2\", \"cuStreamSynchronize\"], "
        "\"calls\": 13, \"failed\": \"\", " +
            none);
  for (const int error : {2, 719})
    for (int n = 1; n <= 13; n++) {
      const std::string text = runWith(n, error);
      CHECK(text.find("\"failed\": \"cu") != std::string::npos);
      CHECK(text.substr(text.size() - none.size()) == none);
    }
}

void leaks() {
  const TemporaryFile report;
  const int code = inChild([&] {
    const Started d({"OCTCONV_STAND_IN_REPORT", report.name.c_str()});
    SUCCEED(d.cuDevicePrimaryCtxRelease_v2(0));
  });
  CHECK(code == 0);
  CHECK(
      contents(report.name) ==
      "{\"slowOnMain\": [\"cuDevicePrimaryCtxRelease_v2\", \"cuDevicePrimaryCtxRetain\", \"cuModuleLoadData\"], "
      "\"calls\": 8, \"failed\": \"\", \"launches\": 0, \"graphLaunches\": 0, "
      "\"spins\": 0, \"bytesToDevice\": 0, "
      "\"bytesToHost\": "
      "0, \"errors\": \"\", \"live\": {\"contexts\": 0, \"modules\": 1, \"streams\": 1, \"events\": 0, \"graphs\": 0, "
      "\"executables\": 0, \"allocations\": 0, \"pinned\": 0, \"cudnn\": 0}}\n");
}

const std::map<std::string, void (*)()> tests = {
    {"work is done when somebody waits for it", deferred},
    {"work of two streams is done in any order", streams},
    {"launches are captured, and replayed", graphs},
    {"threads may wait at the same time", threads},
    {"the error of a kernel is the answer until the context ends", kernelFails},
    {"the host cannot touch device memory", deviceMemoryFaults},
    {"copies stay within memory of the device and pinned memory", bounds},
    {"a device has so much memory", memoryEnds},
    {"bad arguments have the driver's errors", errors},
    {"no device", noDevice},
    {"a device that is too old", oldDevice},
    {"any call may be made to fail, and nothing stays behind", injection},
    {"what nobody gave back is counted", leaks},
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) return 2;
  library = arguments[1];
  const auto test = tests.find(count == 3 ? arguments[2] : "");
  if (test == tests.end()) {
    for (const auto& [name, function] : tests) std::printf("%s\n", name.c_str());
    return count == 2 ? 0 : 2;
  }
  test->second();
}
