// A stand-in for the CUDA driver, for tests on a machine without one: build/test/libcuda.so.1, which
// OCTCONV_CUDA_DRIVER names. Kernels run in the emulator, everything else as the driver documents it, but where the
// driver leaves something open the stand-in takes what shows most mistakes:
// - Work of a stream is done when somebody waits for it, and not before; a part of the other streams' work is done then
//   too. It is in order in each stream.
// - Device memory is NaN when it is fresh. The host cannot touch it: that is a SIGSEGV.
// - A copy from or to host memory that is not pinned is an error, because it would wait.
// - There is no default stream.
// - A capture takes launches of kernels and work of cuDNN alone. In its thread, what the driver forbids there is an
// error and ends it. It writes to stderr why it refuses a call that the driver would take, and what a kernel throws.
//
// Environment:
//   OCTCONV_STAND_IN_DEVICES     number of devices (1)
//   OCTCONV_STAND_IN_CAPABILITY  their compute capability (9.0)
//   OCTCONV_STAND_IN_MULTIPROCESSORS  of each (4: small convolutions fill it)
//   OCTCONV_STAND_IN_MEMORY      bytes of each (2^30)
//   OCTCONV_STAND_IN_VERSION     of the driver (13000)
//   OCTCONV_STAND_IN_SEED        of what happens in any order (0). Kernels make their copies at any time if it is a
//                                multiple of 4; otherwise always as late as allowed (1), at once (2), in between (3)
//   OCTCONV_STAND_IN_FAIL        `n:e`: the n-th of all calls, the first is 1, fails with error e. A call that gives
//                                something back does so nevertheless. An error that leaves a context unusable does so.
//                                A process may change it, and counts calls from then on.
//   OCTCONV_STAND_IN_REPORT      file that is written when the process ends, and by the first call after
//                                OCTCONV_STAND_IN_FAIL was changed: {"slowOnMain": names of calls of the main thread
//                                that may wait for the GPU or take milliseconds, "calls": their number, "failed": name
//                                of the call that was made to fail, "launches": their number, with those of graphs,
//                                "graphLaunches": of whole graphs, "spins": waits in a context whose flags let a thread
//                                spin, "bytesToDevice", "bytesToHost": that were copied, "errors": what stderr was
//                                told, "live": {"contexts", "modules", "streams", "events", "graphs", "executables",
//                                "allocations", "pinned", "cudnn": how many nobody gave back, even if their context has
//                                ended}}
// standInLive() is the sum of `live`. The stand-in for cuDNN (cudnn.cc) is a part of this one: its calls are counted
// and fail, its work is done or captured and what it holds is reported here.
#include "cuda/driver.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "emulator.h"
#include "kernel.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes)
#endif

namespace octconv::cuda {

// All that driver.h declares is defined here.
extern "C" {
#define OCTCONV_DECLARE(name, ...) [[gnu::visibility("default")]] CUresult name(__VA_ARGS__);
OCTCONV_DRIVER_FUNCTIONS(OCTCONV_DECLARE)
[[gnu::visibility("default")]] int standInLive();
[[gnu::visibility("default")]] CUresult standInCall(const char* name, bool needsContext, bool givesBack);
[[gnu::visibility("default")]] void standInHold(int more);
[[gnu::visibility("default")]] CUresult standInWork(CUstream stream, bool capturable, std::function<void()> work);
}
#define OCTCONV_ADDRESS(name, ...) reinterpret_cast<void*>(name),
[[gnu::used]] static void* const defined[] = {OCTCONV_DRIVER_FUNCTIONS(OCTCONV_ADDRESS)};

// X(name, code, text)
#define OCTCONV_ERRORS(X)                                                                                  \
  X(CUDA_SUCCESS, 0, "no error")                                                                           \
  X(CUDA_ERROR_INVALID_VALUE, 1, "invalid argument")                                                       \
  X(CUDA_ERROR_OUT_OF_MEMORY, 2, "out of memory")                                                          \
  X(CUDA_ERROR_NOT_INITIALIZED, 3, "initialization error")                                                 \
  X(CUDA_ERROR_DEINITIALIZED, 4, "driver shutting down")                                                   \
  X(CUDA_ERROR_NO_DEVICE, 100, "no CUDA-capable device is detected")                                       \
  X(CUDA_ERROR_INVALID_DEVICE, 101, "invalid device ordinal")                                              \
  X(CUDA_ERROR_INVALID_IMAGE, 200, "device kernel image is invalid")                                       \
  X(CUDA_ERROR_INVALID_CONTEXT, 201, "invalid device context")                                             \
  X(CUDA_ERROR_NO_BINARY_FOR_GPU, 209, "no kernel image is available for execution on the device")         \
  X(CUDA_ERROR_ECC_UNCORRECTABLE, 214, "uncorrectable ECC error encountered")                              \
  X(CUDA_ERROR_INVALID_HANDLE, 400, "invalid resource handle")                                             \
  X(CUDA_ERROR_ILLEGAL_STATE, 401, "the operation cannot be performed in the present state")               \
  X(CUDA_ERROR_NOT_FOUND, 500, "named symbol not found")                                                   \
  X(CUDA_ERROR_NOT_READY, 600, "device not ready")                                                         \
  X(CUDA_ERROR_ILLEGAL_ADDRESS, 700, "an illegal memory access was encountered")                           \
  X(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, 701, "too many resources requested for launch")                    \
  X(CUDA_ERROR_LAUNCH_TIMEOUT, 702, "the launch timed out and was terminated")                             \
  X(CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE, 708, "primary context active")                                      \
  X(CUDA_ERROR_CONTEXT_IS_DESTROYED, 709, "context is destroyed")                                          \
  X(CUDA_ERROR_ILLEGAL_INSTRUCTION, 715, "an illegal instruction was encountered")                         \
  X(CUDA_ERROR_MISALIGNED_ADDRESS, 716, "misaligned address")                                              \
  X(CUDA_ERROR_LAUNCH_FAILED, 719, "unspecified launch failure")                                           \
  X(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900, "operation not permitted when stream is capturing")        \
  X(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901, "operation failed due to a previous error during capture") \
  X(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, 908,                                                           \
    "attempt to terminate a thread-local capture sequence from another thread")                            \
  X(CUDA_ERROR_UNKNOWN, 999, "unknown error")
#define OCTCONV_CODE(name, code, text) constexpr CUresult name = code;
OCTCONV_ERRORS(OCTCONV_CODE)

using Context = CUctx_st;
using Function = CUfunc_st;
using Module = CUmod_st;
using Stream = CUstream_st;
using Event = CUevent_st;
using Graph = CUgraph_st;
using Executable = CUgraphExec_st;

struct CUctx_st {
  int device;
  int references = 0;
  unsigned flags = 0;
  CUresult error = CUDA_SUCCESS;  // left behind by a kernel, the answer to every call
};
struct CUfunc_st {
  Context* context;
  const Kernel* kernel;
  unsigned mostSharedBytes = 48 * 1024;
};
struct CUmod_st {
  Context* context;
  std::map<std::string, Function> functions;
};
struct CUgraph_st {
  Context* context;
  using Node = std::function<void(uint64_t seed)>;
  std::vector<Node> nodes;  // in order
};
struct CUgraphExec_st {
  Context* context;
  std::vector<Graph::Node> nodes;
};
struct CUstream_st {
  Context* context;
  std::deque<std::function<void()>> work = {};
  struct Capture {
    std::vector<Graph::Node> nodes;
    std::thread::id thread;
    bool valid = true;
  };
  std::unique_ptr<Capture> capture = nullptr;
};
struct CUevent_st {
  Context* context;
  bool timed;
  struct State {
    int waiting = 0;  // records that were not reached
    bool recorded = false;
    std::chrono::steady_clock::time_point time;
  };
  std::shared_ptr<State> state = std::make_shared<State>();  // outlives the event in a stream's work
};

namespace {

constexpr size_t pageBytes = 4096, alignment = 256;

int64_t setting(const char* name, int64_t otherwise) {
  const char* const text = std::getenv(name);
  return text ? std::strtoll(text, nullptr, 10) : otherwise;
}
std::string textSetting(const char* name, const char* otherwise) {
  const char* const text = std::getenv(name);
  return text ? text : otherwise;
}

// Memory of a device: whole pages between two that nobody may touch.
struct Allocation {
  Context* context;
  char* pages;
  size_t pagesBytes, bytes;
  bool open;

  char* begin() const { return pages + pagesBytes - (bytes + alignment - 1) / alignment * alignment; }
  void protect(bool opened) {
    open = opened;
    mprotect(pages, pagesBytes, opened ? PROT_READ | PROT_WRITE : PROT_NONE);
  }
  // Whether what lies around it is as it was.
  bool marginIsWhole() const {
    const auto whole = [](const char* from, const char* to) {
      return std::all_of(from, to, [](char byte) { return byte == '\xff'; });
    };
    return whole(pages, begin()) && whole(begin() + bytes, pages + pagesBytes);
  }
};
struct Pinned {
  Context* context;
  size_t bytes;
};

struct StandIn {
  std::mutex mutex;
  std::condition_variable idle;

  std::vector<Context*> devices;  // the context of each
  std::deque<Context> contexts;   // a device gets a new one when the old one has ended
  int capability = 0;             // 75 is 7.5
  int multiprocessors = 0;
  size_t memory = 0;
  uint64_t seed;
  std::mt19937_64 random;
  std::string failSetting;
  int64_t failingCall = 0;
  CUresult failure = CUDA_SUCCESS;
  std::string report, failed, errors;
  std::set<std::string> slowOnMain;

  bool initialized = false, ended = false;
  int64_t calls = 0, launches = 0, graphLaunches = 0, spins = 0;
  size_t bytesToDevice = 0, bytesToHost = 0;
  size_t ofCudnn = 0;  // handles and descriptors
  std::map<const char*, Allocation> allocations;
  std::map<const char*, Pinned> pinned;
  std::set<Module*> modules;
  std::set<Stream*> streams;
  std::set<Event*> events;
  std::set<Graph*> graphs;
  std::set<Executable*> executables;

  Stream* running = nullptr;  // whose work is being done, without the mutex
  int waiting = 0;            // threads in finish()

  StandIn() {
    for (int i = 0; i < setting("OCTCONV_STAND_IN_DEVICES", 1); i++) devices.push_back(newContext(i));
    int major = 0, minor = 0;
    std::sscanf(textSetting("OCTCONV_STAND_IN_CAPABILITY", "9.0").c_str(), "%d.%d", &major, &minor);
    capability = major * 10 + minor;
    multiprocessors = static_cast<int>(setting("OCTCONV_STAND_IN_MULTIPROCESSORS", 4));
    memory = static_cast<size_t>(setting("OCTCONV_STAND_IN_MEMORY", int64_t{1} << 30));
    seed = static_cast<uint64_t>(setting("OCTCONV_STAND_IN_SEED", 0));
    random.seed(seed);
    report = textSetting("OCTCONV_STAND_IN_REPORT", "");
    readFailure();
  }

  void readFailure() {
    failSetting = textSetting("OCTCONV_STAND_IN_FAIL", "");
    long long call = 0;
    std::sscanf(failSetting.c_str(), "%lld:%d", &call, &failure);
    failingCall = call, calls = 0, failed.clear();
  }

  Context* newContext(int device) {
    contexts.push_back({device});
    return &contexts.back();
  }
  // See run() in emulator.h.
  uint64_t seedOfLaunch() {
    const uint64_t any = random();
    return seed % 4 == 0 ? any : any - any % 3 + seed % 4 - 1;
  }
  size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); }

  CUresult refuse(CUresult error, const std::string& why) {
    std::fprintf(stderr, "stand-in CUDA driver: %s\n", why.c_str());
    errors += (errors.empty() ? "" : "; ") + why;
    return error;
  }

  std::vector<std::pair<const char*, size_t>> live() const {
    const auto used = [](const Context& context) { return context.references > 0; };
    return {{"contexts", std::count_if(contexts.begin(), contexts.end(), used)},
            {"modules", modules.size()},
            {"streams", streams.size()},
            {"events", events.size()},
            {"graphs", graphs.size()},
            {"executables", executables.size()},
            {"allocations", allocations.size()},
            {"pinned", pinned.size()},
            {"cudnn", ofCudnn}};
  }
};

// Never deleted: a call may come when the process has almost ended.
StandIn& standIn = *new StandIn;
thread_local std::vector<Context*> stack;  // of this thread
thread_local Context* current = nullptr;   // the last one

void writeReport() {
  if (standIn.report.empty()) return;
  const auto quoted = [](const std::string& text) {
    std::string json = "\"";
    for (const char c : text) json += c == '"' || c == '\\' ? std::string{'\\', c} : std::string{c < ' ' ? ' ' : c};
    return json + '"';
  };
  std::ofstream file(standIn.report);
  const char* comma = "";
  file << "{\"slowOnMain\": [";
  for (const auto& name : standIn.slowOnMain) file << std::exchange(comma, ", ") << quoted(name);
  file << "], \"calls\": " << standIn.calls << ", \"failed\": " << quoted(standIn.failed)
       << ", \"launches\": " << standIn.launches << ", \"graphLaunches\": " << standIn.graphLaunches
       << ", \"spins\": " << standIn.spins << ", \"bytesToDevice\": " << standIn.bytesToDevice
       << ", \"bytesToHost\": " << standIn.bytesToHost << ", \"errors\": " << quoted(standIn.errors) << ", \"live\": {";
  comma = "";
  for (const auto& [name, count] : standIn.live()) file << std::exchange(comma, ", ") << '"' << name << "\": " << count;
  file << "}}\n";
}

struct AtExit {
  ~AtExit() {
    const std::lock_guard lock(standIn.mutex);
    standIn.ended = true;
    writeReport();
  }
} atExit;

bool isLasting(CUresult error) {
  return error == CUDA_ERROR_ECC_UNCORRECTABLE || error == CUDA_ERROR_ILLEGAL_ADDRESS ||
         error == CUDA_ERROR_LAUNCH_TIMEOUT ||
         (error >= CUDA_ERROR_ILLEGAL_INSTRUCTION && error <= CUDA_ERROR_LAUNCH_FAILED);
}

// What the driver forbids in a thread that captures ends its captures.
bool endsCaptures(const std::string& call) {
  static const std::set<std::string> forbidden = {"cuMemAlloc_v2",      "cuMemFree_v2",     "cuMemHostAlloc",
                                                  "cuMemFreeHost",      "cuModuleLoadData", "cuModuleUnload",
                                                  "cuStreamSynchronize"};
  if (forbidden.count(call) == 0) return false;
  bool any = false;
  for (Stream* const stream : standIn.streams)
    if (stream->capture && stream->capture->thread == std::this_thread::get_id())
      any = true, stream->capture->valid = false;
  return any;
}

bool isSlow(const std::string& call) {
  static const std::set<std::string> slow = {"cuDevicePrimaryCtxRetain",
                                             "cuDevicePrimaryCtxRelease_v2",
                                             "cuMemAlloc_v2",
                                             "cuMemFree_v2",
                                             "cuMemHostAlloc",
                                             "cuMemFreeHost",
                                             "cuModuleLoadData",
                                             "cuModuleUnload",
                                             "cuStreamSynchronize",
                                             "cuStreamDestroy_v2",
                                             "cuGraphExecDestroy",
                                             "cuGraphInstantiateWithFlags",
                                             "cudnnCreate",
                                             "cudnnBackendFinalize"};
  return slow.count(call) > 0;
}

// What a call needs to have been done before.
enum class Needs { nothing, init, context };

// `givesBack`: does so even if it fails because of something else.
template <class Body>
CUresult call(const char* name, Needs needs, const Body& body, bool givesBack = false) {
  std::unique_lock lock(standIn.mutex);
  CUresult error = CUDA_SUCCESS;
  if (textSetting("OCTCONV_STAND_IN_FAIL", "") != standIn.failSetting) {
    writeReport();
    standIn.readFailure();
  }
  if (gettid() == getpid() && isSlow(name)) standIn.slowOnMain.insert(name);
  if (++standIn.calls == standIn.failingCall) {
    standIn.failed = name;
    error = standIn.failure;
    if (needs == Needs::context && current && isLasting(error)) current->error = error;
    if (!givesBack) return error;
  }
  if (standIn.ended) return CUDA_ERROR_DEINITIALIZED;
  if (needs != Needs::nothing && !standIn.initialized) return CUDA_ERROR_NOT_INITIALIZED;
  if (needs == Needs::context) {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    if (current->references == 0) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (current->error && !givesBack) return current->error;
  }
  const CUresult result = endsCaptures(name) ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : body(lock);
  if (result || error) return result ? result : error;
  return needs == Needs::context ? current->error : CUDA_SUCCESS;
}
template <class Body>
CUresult release(const char* name, Needs needs, const Body& body) {
  return call(name, needs, body, true);
}

// --- Work ------------------------------------------------------------------------------------------------------------

// Does work until the streams that are asked for have none.
void finish(std::unique_lock<std::mutex>& lock, const std::function<bool(const Stream&)>& wanted) {
  standIn.waiting++;
  for (;;) {
    std::vector<Stream*> candidates;
    bool done = !standIn.running || !wanted(*standIn.running);
    for (Stream* const stream : standIn.streams) {
      if (stream->work.empty()) continue;
      candidates.push_back(stream);
      if (wanted(*stream)) done = false;
    }
    if (done) break;
    if (standIn.running) {
      standIn.idle.wait(lock);
      continue;
    }
    Stream* const stream = candidates[standIn.below(candidates.size())];
    const std::function<void()> work = std::move(stream->work.front());
    stream->work.pop_front();
    for (auto& [begin, allocation] : standIn.allocations)
      if (allocation.context == stream->context && !allocation.open) allocation.protect(true);
    standIn.running = stream;
    lock.unlock();
    std::string thrown;
    try {
      work();
    } catch (const std::exception& error) { thrown = error.what(); }
    lock.lock();
    standIn.running = nullptr;
    if (!thrown.empty()) {
      stream->context->error = standIn.refuse(CUDA_ERROR_LAUNCH_FAILED, thrown);
      for (Stream* const other : standIn.streams)
        if (other->context == stream->context) other->work.clear();
    }
    standIn.idle.notify_all();
  }
  if (--standIn.waiting > 0) return;
  for (auto& [begin, allocation] : standIn.allocations)
    if (allocation.open) allocation.protect(false);
}
void finishContext(std::unique_lock<std::mutex>& lock, const Context* context) {
  finish(lock, [&](const Stream& stream) { return stream.context == context; });
}

template <class Map>
bool isWithin(const Map& map, const char* at, size_t bytes) {
  auto found = map.upper_bound(at);
  if (found == map.begin()) return false;
  --found;
  const size_t offset = static_cast<size_t>(at - found->first);
  return offset <= found->second.bytes && bytes <= found->second.bytes - offset;
}
char* hostView(CUdeviceptr pointer) { return reinterpret_cast<char*>(pointer); }

template <class Object>
bool isKnown(const std::set<Object*>& objects, Object* object) {
  return objects.count(object) > 0 && object->context == current;
}

// What computes, done at once or as a part of a graph.
void launchNode(const Graph::Node& node, Stream* stream) {
  standIn.launches++;
  stream->work.push_back([node, seed = standIn.seedOfLaunch()] { node(seed); });
}
void giveNode(Graph::Node node, Stream* stream) {
  if (stream->capture)
    stream->capture->nodes.push_back(std::move(node));
  else
    launchNode(node, stream);
}

// A copy, or a setting, of `bytes` from `device` on; `host` is null if there is no host side.
CUresult transfer(const char* name, CUdeviceptr device, const void* host, size_t bytes, CUstream stream,
                  std::function<void()> work) {
  if (!isKnown(standIn.streams, stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (!isWithin(standIn.allocations, hostView(device), bytes))
    return standIn.refuse(CUDA_ERROR_INVALID_VALUE, std::string(name) + ": not within device memory");
  if (host && !isWithin(standIn.pinned, static_cast<const char*>(host), bytes))
    return standIn.refuse(CUDA_ERROR_INVALID_VALUE, std::string(name) + ": not within pinned memory of the host");
  if (stream->capture)
    return standIn.refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                          std::string(name) + ": only launches are captured here");
  stream->work.push_back(std::move(work));
  return CUDA_SUCCESS;
}

// `stand-in sm_90 compute_80`: machine code is for its own major number, PTX for all that come later.
bool hasKernels(const std::string& image) {
  std::istringstream words(image);
  for (std::string word; words >> word;) {
    int of = 0;
    if (std::sscanf(word.c_str(), "sm_%d", &of) == 1 && of / 10 == standIn.capability / 10 && of <= standIn.capability)
      return true;
    if (std::sscanf(word.c_str(), "compute_%d", &of) == 1 && of <= standIn.capability) return true;
  }
  return false;
}

unsigned sharedBytesOfBlock() {
  const int c = standIn.capability;
  const unsigned kilobytes = c < 80 ? 64 : c == 80 || c == 87 ? 163 : c < 90 || c >= 120 ? 99 : 227;
  return kilobytes * 1024;
}

}  // namespace

// --- The driver's functions
// --------------------------------------------------------------------------------------------

extern "C" {

int standInLive() {
  const std::lock_guard lock(standIn.mutex);
  size_t sum = 0;
  for (const auto& [name, count] : standIn.live()) sum += count;
  return static_cast<int>(sum);
}

// A call of cuDNN.
CUresult standInCall(const char* name, bool needsContext, bool givesBack) {
  return call(
      name, needsContext ? Needs::context : Needs::nothing, [](auto&) { return CUDA_SUCCESS; }, givesBack);
}
// Handles and descriptors of cuDNN: so many more, or less.
void standInHold(int more) {
  const std::lock_guard lock(standIn.mutex);
  standIn.ofCudnn += static_cast<size_t>(more);
}
// Work of cuDNN, which a capture takes or is ended by.
CUresult standInWork(CUstream stream, bool capturable, std::function<void()> work) {
  const std::lock_guard lock(standIn.mutex);
  if (!isKnown(standIn.streams, stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture && !capturable) {
    stream->capture->valid = false;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  giveNode([work = std::move(work)](uint64_t) { work(); }, stream);
  return CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags) {
  return call("cuInit", Needs::nothing, [&](auto&) {
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (standIn.devices.empty()) return CUDA_ERROR_NO_DEVICE;
    standIn.initialized = true;
    return CUDA_SUCCESS;
  });
}

CUresult cuDriverGetVersion(int* version) {
  return call("cuDriverGetVersion", Needs::nothing, [&](auto&) {
    if (!version) return CUDA_ERROR_INVALID_VALUE;
    *version = static_cast<int>(setting("OCTCONV_STAND_IN_VERSION", 13000));
    return CUDA_SUCCESS;
  });
}

static CUresult describe(const char* function, CUresult error, const char** to, bool byName) {
  return call(function, Needs::nothing, [&](auto&) {
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    *to = nullptr;
#define OCTCONV_DESCRIBE(name, code, text) \
  if (error == code) *to = byName ? #name : text;
    OCTCONV_ERRORS(OCTCONV_DESCRIBE)
    return *to ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  });
}
CUresult cuGetErrorName(CUresult error, const char** name) { return describe("cuGetErrorName", error, name, true); }
CUresult cuGetErrorString(CUresult error, const char** text) {
  return describe("cuGetErrorString", error, text, false);
}

CUresult cuDeviceGetCount(int* count) {
  return call("cuDeviceGetCount", Needs::init, [&](auto&) {
    if (!count) return CUDA_ERROR_INVALID_VALUE;
    *count = static_cast<int>(standIn.devices.size());
    return CUDA_SUCCESS;
  });
}

static bool isDevice(CUdevice device) { return device >= 0 && static_cast<size_t>(device) < standIn.devices.size(); }

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  return call("cuDeviceGet", Needs::init, [&](auto&) {
    if (!device) return CUDA_ERROR_INVALID_VALUE;
    if (!isDevice(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
  });
}
CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  return call("cuDeviceGetName", Needs::init, [&](auto&) {
    if (!name || length < 1) return CUDA_ERROR_INVALID_VALUE;
    if (!isDevice(device)) return CUDA_ERROR_INVALID_DEVICE;
    std::snprintf(name, static_cast<size_t>(length), "stand-in %d", device);
    return CUDA_SUCCESS;
  });
}
CUresult cuDeviceGetPCIBusId(char* bus, int length, CUdevice device) {
  return call("cuDeviceGetPCIBusId", Needs::init, [&](auto&) {
    if (!bus || length < 13) return CUDA_ERROR_INVALID_VALUE;
    if (!isDevice(device)) return CUDA_ERROR_INVALID_DEVICE;
    std::snprintf(bus, static_cast<size_t>(length), "0000:%02X:00.0", static_cast<unsigned>(device));
    return CUDA_SUCCESS;
  });
}
CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  return call("cuDeviceTotalMem_v2", Needs::init, [&](auto&) {
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    if (!isDevice(device)) return CUDA_ERROR_INVALID_DEVICE;
    *bytes = standIn.memory;
    return CUDA_SUCCESS;
  });
}
CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
  return call("cuDeviceGetAttribute", Needs::init, [&](auto&) {
    if (!value) return CUDA_ERROR_INVALID_VALUE;
    if (!isDevice(device)) return CUDA_ERROR_INVALID_DEVICE;
    switch (attribute) {
      case computeCapabilityMajor:
        *value = standIn.capability / 10;
        return CUDA_SUCCESS;
      case computeCapabilityMinor:
        *value = standIn.capability % 10;
        return CUDA_SUCCESS;
      case multiprocessorCount:
        *value = standIn.multiprocessors;
        return CUDA_SUCCESS;
      case mostSharedBytes:
        *value = static_cast<int>(sharedBytesOfBlock());
        return CUDA_SUCCESS;
    }
    return standIn.refuse(CUDA_ERROR_INVALID_VALUE,
                          "cuDeviceGetAttribute: attribute " + std::to_string(attribute) + " is not known here");
  });
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return call("cuDevicePrimaryCtxRetain", Needs::init, [&](auto&) {
    if (!context) return CUDA_ERROR_INVALID_VALUE;
    if (!isDevice(device)) return CUDA_ERROR_INVALID_DEVICE;
    *context = standIn.devices[static_cast<size_t>(device)];
    (*context)->references++;
    return CUDA_SUCCESS;
  });
}
CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags) {
  return call("cuDevicePrimaryCtxSetFlags_v2", Needs::init, [&](auto&) {
    if (!isDevice(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (flags & ~waitsAsleep) return CUDA_ERROR_INVALID_VALUE;
    Context* const context = standIn.devices[static_cast<size_t>(device)];
    if (context->references > 0) return CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE;
    context->flags = flags;
    return CUDA_SUCCESS;
  });
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return release("cuDevicePrimaryCtxRelease_v2", Needs::init, [&](auto& lock) {
    if (!isDevice(device)) return CUDA_ERROR_INVALID_DEVICE;
    Context*& context = standIn.devices[static_cast<size_t>(device)];
    if (context->references == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (context->references == 1) finishContext(lock, context);
    if (--context->references == 0) context = standIn.newContext(device);  // flags are set anew too
    return CUDA_SUCCESS;
  });
}
CUresult cuCtxPushCurrent_v2(CUcontext context) {
  return call("cuCtxPushCurrent_v2", Needs::init, [&](auto&) {
    const auto usable = [&](const Context& known) { return &known == context && known.references > 0; };
    if (std::none_of(standIn.contexts.begin(), standIn.contexts.end(), usable)) return CUDA_ERROR_INVALID_CONTEXT;
    stack.push_back(context);
    current = context;
    return CUDA_SUCCESS;
  });
}
CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  return release("cuCtxPopCurrent_v2", Needs::init, [&](auto&) {
    if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (context) *context = current;
    stack.pop_back();
    current = stack.empty() ? nullptr : stack.back();
    return CUDA_SUCCESS;
  });
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  return call("cuModuleLoadData", Needs::context, [&](auto&) {
    if (!module || !image) return CUDA_ERROR_INVALID_VALUE;
    static constexpr uint32_t fatbin = 0xBA55ED50;
    const auto* const text = static_cast<const char*>(image);
    const bool isText = strncmp(text, "stand-in", 8) == 0;
    if (!isText && memcmp(image, &fatbin, 4) != 0) return CUDA_ERROR_INVALID_IMAGE;
    if (isText && !hasKernels(text)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    *module = new Module{current, {}};
    standIn.modules.insert(*module);
    return CUDA_SUCCESS;
  });
}
CUresult cuModuleUnload(CUmodule module) {
  return release("cuModuleUnload", Needs::context, [&](auto& lock) {
    if (!isKnown(standIn.modules, module)) return CUDA_ERROR_INVALID_HANDLE;
    finishContext(lock, current);
    standIn.modules.erase(module);
    delete module;
    return CUDA_SUCCESS;
  });
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  return call("cuModuleGetFunction", Needs::context, [&](auto&) {
    if (!function || !name) return CUDA_ERROR_INVALID_VALUE;
    if (!isKnown(standIn.modules, module)) return CUDA_ERROR_INVALID_HANDLE;
    const auto kernel = kernels.find(name);
    if (kernel == kernels.end()) return CUDA_ERROR_NOT_FOUND;
    *function = &module->functions.try_emplace(name, Function{current, &kernel->second}).first->second;
    return CUDA_SUCCESS;
  });
}
CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
  return call("cuFuncSetAttribute", Needs::context, [&](auto&) {
    if (!function || function->context != current) return CUDA_ERROR_INVALID_HANDLE;
    if (attribute != maxDynamicSharedBytes || value < 0 || static_cast<unsigned>(value) > sharedBytesOfBlock())
      return CUDA_ERROR_INVALID_VALUE;
    function->mostSharedBytes = static_cast<unsigned>(value);
    return CUDA_SUCCESS;
  });
}

CUresult cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
  return call("cuMemAlloc_v2", Needs::context, [&](auto&) {
    if (!pointer || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    size_t used = 0;
    for (const auto& [begin, allocation] : standIn.allocations)
      if (allocation.context == current) used += allocation.bytes;
    if (bytes > standIn.memory - used) return CUDA_ERROR_OUT_OF_MEMORY;
    const size_t pagesBytes = (bytes + pageBytes - 1) / pageBytes * pageBytes;
    void* const memory =
        mmap(nullptr, pagesBytes + 2 * pageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    Allocation made = {current, static_cast<char*>(memory) + pageBytes, pagesBytes, bytes, false};
    made.protect(true);
    memset(made.pages, 0xff, pagesBytes);
    ASAN_POISON_MEMORY_REGION(made.pages, pagesBytes);
    ASAN_UNPOISON_MEMORY_REGION(made.begin(), bytes);
    made.protect(false);
    *pointer = reinterpret_cast<CUdeviceptr>(made.begin());
    standIn.allocations.emplace(made.begin(), made);
    return CUDA_SUCCESS;
  });
}
CUresult cuMemFree_v2(CUdeviceptr pointer) {
  return release("cuMemFree_v2", Needs::context, [&](auto& lock) {
    const auto found = standIn.allocations.find(hostView(pointer));
    if (found == standIn.allocations.end()) return CUDA_ERROR_INVALID_VALUE;
    finishContext(lock, found->second.context);
    Allocation freed = found->second;
    standIn.allocations.erase(found);
    freed.protect(true);
    ASAN_UNPOISON_MEMORY_REGION(freed.pages, freed.pagesBytes);
    const bool whole = freed.marginIsWhole();
    munmap(freed.pages - pageBytes, freed.pagesBytes + 2 * pageBytes);
    if (whole) return CUDA_SUCCESS;
    return standIn.refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "cuMemFree_v2: a kernel has written beside this memory");
  });
}
CUresult cuMemHostAlloc(void** pointer, size_t bytes, unsigned flags) {
  return call("cuMemHostAlloc", Needs::context, [&](auto&) {
    if (!pointer || bytes == 0 || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    if (posix_memalign(pointer, pageBytes, bytes) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(*pointer, 0xff, bytes);
    standIn.pinned.emplace(static_cast<const char*>(*pointer), Pinned{current, bytes});
    return CUDA_SUCCESS;
  });
}
CUresult cuMemFreeHost(void* pointer) {
  return release("cuMemFreeHost", Needs::context, [&](auto& lock) {
    const auto found = standIn.pinned.find(static_cast<const char*>(pointer));
    if (found == standIn.pinned.end()) return CUDA_ERROR_INVALID_VALUE;
    finishContext(lock, found->second.context);
    standIn.pinned.erase(found);
    std::free(pointer);
    return CUDA_SUCCESS;
  });
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  return call("cuMemcpyHtoDAsync_v2", Needs::context, [&](auto&) {
    if (!from) return CUDA_ERROR_INVALID_VALUE;
    standIn.bytesToDevice += bytes;
    return transfer("cuMemcpyHtoDAsync_v2", to, from, bytes, stream, [=] { memcpy(hostView(to), from, bytes); });
  });
}
CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return call("cuMemcpyDtoHAsync_v2", Needs::context, [&](auto&) {
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    standIn.bytesToHost += bytes;
    return transfer("cuMemcpyDtoHAsync_v2", from, to, bytes, stream, [=] { memcpy(to, hostView(from), bytes); });
  });
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return call("cuMemcpyDtoDAsync_v2", Needs::context, [&](auto&) {
    if (!isWithin(standIn.allocations, hostView(from), bytes))
      return standIn.refuse(CUDA_ERROR_INVALID_VALUE, "cuMemcpyDtoDAsync_v2: not within device memory");
    return transfer("cuMemcpyDtoDAsync_v2", to, nullptr, bytes, stream,
                    [=] { memcpy(hostView(to), hostView(from), bytes); });
  });
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
  return call("cuMemsetD8Async", Needs::context, [&](auto&) {
    return transfer("cuMemsetD8Async", to, nullptr, bytes, stream, [=] { memset(hostView(to), value, bytes); });
  });
}

CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  return call("cuStreamCreate", Needs::context, [&](auto&) {
    if (!stream || flags > nonBlockingStream) return CUDA_ERROR_INVALID_VALUE;
    *stream = new Stream{current};
    standIn.streams.insert(*stream);
    return CUDA_SUCCESS;
  });
}
CUresult cuStreamDestroy_v2(CUstream stream) {
  return release("cuStreamDestroy_v2", Needs::context, [&](auto& lock) {
    if (!isKnown(standIn.streams, stream)) return CUDA_ERROR_INVALID_HANDLE;
    finish(lock, [&](const Stream& other) { return &other == stream; });
    standIn.streams.erase(stream);
    delete stream;
    return CUDA_SUCCESS;
  });
}
CUresult cuStreamSynchronize(CUstream stream) {
  return call("cuStreamSynchronize", Needs::context, [&](auto& lock) {
    if (!isKnown(standIn.streams, stream)) return CUDA_ERROR_INVALID_HANDLE;
    if (!(current->flags & waitsAsleep)) standIn.spins++;
    finish(lock, [&](const Stream& other) { return &other == stream; });
    return CUDA_SUCCESS;
  });
}

CUresult cuLaunchKernel(CUfunction function, unsigned gridX, unsigned gridY, unsigned gridZ, unsigned blockX,
                        unsigned blockY, unsigned blockZ, unsigned sharedBytes, CUstream stream, void** arguments,
                        void** extra) {
  return call("cuLaunchKernel", Needs::context, [&](auto&) {
    if (!function || function->context != current || !isKnown(standIn.streams, stream))
      return CUDA_ERROR_INVALID_HANDLE;
    const Kernel& kernel = *function->kernel;
    if (gridY != 1 || gridZ != 1 || blockY != 1 || blockZ != 1 || extra)
      return standIn.refuse(CUDA_ERROR_INVALID_VALUE, "cuLaunchKernel: one dimension and no extra are known here");
    if (gridX < 1 || gridX > 0x7fffffff || blockX < 1 || blockX > 1024) return CUDA_ERROR_INVALID_VALUE;
    if (blockX > static_cast<unsigned>(kernel.mostThreads)) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    if (sharedBytes > function->mostSharedBytes) return CUDA_ERROR_INVALID_VALUE;
    if (kernel.arguments > 0 && (!arguments || std::count(arguments, arguments + kernel.arguments, nullptr) > 0))
      return CUDA_ERROR_INVALID_VALUE;
    const Launch launch = {static_cast<int>(gridX), static_cast<int>(blockX), sharedBytes};
    giveNode([bound = kernel.bind(arguments), launch](uint64_t seed) { run(bound, launch, seed); }, stream);
    return CUDA_SUCCESS;
  });
}

CUresult cuEventCreate(CUevent* event, unsigned flags) {
  return call("cuEventCreate", Needs::context, [&](auto&) {
    static constexpr unsigned untimed = 2;
    if (!event || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    *event = new Event{current, !(flags & untimed)};
    standIn.events.insert(*event);
    return CUDA_SUCCESS;
  });
}
CUresult cuEventDestroy_v2(CUevent event) {
  return release("cuEventDestroy_v2", Needs::context, [&](auto&) {
    if (!isKnown(standIn.events, event)) return CUDA_ERROR_INVALID_HANDLE;
    standIn.events.erase(event);
    delete event;
    return CUDA_SUCCESS;
  });
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
  return call("cuEventRecord", Needs::context, [&](auto&) {
    if (!isKnown(standIn.events, event) || !isKnown(standIn.streams, stream)) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture)
      return standIn.refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuEventRecord: only launches are captured here");
    event->state->recorded = true;
    event->state->waiting++;
    stream->work.push_back([state = event->state] {
      const std::lock_guard lock(standIn.mutex);
      state->waiting--;
      state->time = std::chrono::steady_clock::now();
    });
    return CUDA_SUCCESS;
  });
}
CUresult cuEventElapsedTime(float* milliseconds, CUevent begin, CUevent end) {
  return call("cuEventElapsedTime", Needs::context, [&](auto&) {
    if (!milliseconds) return CUDA_ERROR_INVALID_VALUE;
    for (Event* const event : {begin, end})
      if (!isKnown(standIn.events, event) || !event->timed || !event->state->recorded) return CUDA_ERROR_INVALID_HANDLE;
    if (begin->state->waiting + end->state->waiting > 0) return CUDA_ERROR_NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end->state->time - begin->state->time).count();
    return CUDA_SUCCESS;
  });
}

CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
  return call("cuStreamBeginCapture_v2", Needs::context, [&](auto&) {
    if (!isKnown(standIn.streams, stream)) return CUDA_ERROR_INVALID_HANDLE;
    if (mode != threadLocalCapture)
      return standIn.refuse(CUDA_ERROR_INVALID_VALUE, "cuStreamBeginCapture_v2: this mode is not known here");
    if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    stream->capture.reset(new Stream::Capture{{}, std::this_thread::get_id()});
    return CUDA_SUCCESS;
  });
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  return release("cuStreamEndCapture", Needs::context, [&](auto&) {
    if (!isKnown(standIn.streams, stream)) return CUDA_ERROR_INVALID_HANDLE;
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    *graph = nullptr;
    if (!stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    if (stream->capture->thread != std::this_thread::get_id()) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    const auto capture = std::move(stream->capture);
    if (!capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    *graph = new Graph{current, std::move(capture->nodes)};
    standIn.graphs.insert(*graph);
    return CUDA_SUCCESS;
  });
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long flags) {
  return call("cuGraphInstantiateWithFlags", Needs::context, [&](auto&) {
    if (!executable || !isKnown(standIn.graphs, graph)) return CUDA_ERROR_INVALID_VALUE;
    if (flags) return standIn.refuse(CUDA_ERROR_INVALID_VALUE, "cuGraphInstantiateWithFlags: no flags are known here");
    *executable = new Executable{current, graph->nodes};
    standIn.executables.insert(*executable);
    return CUDA_SUCCESS;
  });
}
CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  return call("cuGraphLaunch", Needs::context, [&](auto&) {
    if (!isKnown(standIn.executables, executable) || !isKnown(standIn.streams, stream))
      return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture)
      return standIn.refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuGraphLaunch: only launches are captured here");
    standIn.graphLaunches++;
    for (const Graph::Node& node : executable->nodes) launchNode(node, stream);
    return CUDA_SUCCESS;
  });
}
CUresult cuGraphExecDestroy(CUgraphExec executable) {
  return release("cuGraphExecDestroy", Needs::context, [&](auto&) {
    if (!isKnown(standIn.executables, executable)) return CUDA_ERROR_INVALID_HANDLE;
    standIn.executables.erase(executable);
    delete executable;
    return CUDA_SUCCESS;
  });
}
CUresult cuGraphDestroy(CUgraph graph) {
  return release("cuGraphDestroy", Needs::context, [&](auto&) {
    if (!isKnown(standIn.graphs, graph)) return CUDA_ERROR_INVALID_HANDLE;
    standIn.graphs.erase(graph);
    delete graph;
    return CUDA_SUCCESS;
  });
}

}  // extern "C"

}  // namespace octconv::cuda
