#include "gpu.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "../core/threads.h"
#include "convolutions.h"

namespace octconv::cuda {
namespace {

// What octconv.fatbin has machine code for (tools/cuda.mjs), which the driver also takes for later GPUs of the same
// major number, such as sm_103 and sm_121. For other GPUs from sm_80 on it compiles the PTX of sm_80.
struct Architecture {
  int capability, multiprocessors;  // the latter of a card of it: T4, A100, A10, RTX 4090, H100, B200, RTX 5090
  int sharedKiB;                    // that a block may have
  int fmaPerClock;  // of a multiprocessor of this card, of f16 summed in f32, as lib/bench/estimate.ts assumes that
                    // these kernels reach them
};
constexpr Architecture architectures[] = {{75, 40, 64, 370},  {80, 108, 163, 740}, {86, 72, 99, 370},
                                          {89, 128, 99, 185}, {90, 132, 227, 920}, {100, 148, 227, 920},
                                          {120, 170, 99, 185}};
int fmaPerClockOf(int capability) {
  int fma = 0;
  for (const Architecture& known : architectures)
    if (known.capability <= capability) fma = known.fmaPerClock;
  return fma;
}
// Products of bf16 and tf32 came with sm_80.
std::vector<DType> computesOf(int capability) {
  if (capability < 80) return {DType::f16};
  return {DType::f32, DType::bf16, DType::f16};
}

CUdevice deviceAt(const Driver& driver, int index) {
  CUdevice device = 0;
  driver.check(driver.cuDeviceGet(&device, index), "cuda: GPU " + std::to_string(index));
  return device;
}
int attributeOf(const Driver& driver, int index, int attribute) {
  int value = 0;
  driver.check(driver.cuDeviceGetAttribute(&value, attribute, deviceAt(driver, index)), "cuda: attribute of a GPU");
  return value;
}
std::string nameAt(const Driver& driver, int index) {
  char name[256] = {};
  driver.check(driver.cuDeviceGetName(name, sizeof name, deviceAt(driver, index)), "cuda: name of a GPU");
  return name;
}
std::string busOf(const Driver& driver, int index) {
  char bus[32] = {};
  driver.check(driver.cuDeviceGetPCIBusId(bus, sizeof bus, deviceAt(driver, index)), "cuda: bus of a GPU");
  return bus;
}
size_t memoryOf(const Driver& driver, int index) {
  size_t bytes = 0;
  driver.check(driver.cuDeviceTotalMem_v2(&bytes, deviceAt(driver, index)), "cuda: memory of a GPU");
  return bytes;
}

// The kernels of all architectures, a file beside the addon.
std::ifstream openFatbin() {
  Dl_info addon{};
  if (!dladdr(reinterpret_cast<const void*>(&deviceAt), &addon) || !addon.dli_fname)
    fail("cuda: where the addon lies is unknown");
  const std::string path = addon.dli_fname;
  const std::string file = path.substr(0, path.rfind('/') + 1) + "octconv.fatbin";
  std::ifstream stream(file, std::ios::binary);
  if (!stream || !std::filesystem::is_regular_file(file)) fail("cuda: octconv.fatbin is missing: npm run build:cuda");
  return stream;
}

// The driver believes what the header of a fatbin says of its length. Anything else it takes for text.
void checkLength(const std::vector<char>& image) {
  constexpr uint32_t magic = 0xba55ed50;
  struct {
    uint32_t magic;
    uint16_t version, headerBytes;
    uint64_t bytes;  // behind the header
  } header{0, 0, sizeof header, UINT64_MAX};
  std::memcpy(&header, image.data(), std::min(image.size(), sizeof header));
  if (header.magic == magic && (image.size() < header.headerBytes || image.size() - header.headerBytes < header.bytes))
    fail("cuda: octconv.fatbin is cut short, at ", image.size(), " bytes: npm run build:cuda");
}

}  // namespace

// --- Context ---------------------------------------------------------------------------------------------------------

Context::Context(int index, std::string gpuName, int capability) : name(std::move(gpuName)) {
  std::ifstream stream = openFatbin();
  std::vector<char> image{std::istreambuf_iterator<char>(stream), {}};
  checkLength(image);
  image.push_back(0);
  const Driver& driver = Driver::get();
  device = deviceAt(driver, index);
  // Whoever uses the context already, in this process, has decided how threads wait in it.
  if (const CUresult result = driver.cuDevicePrimaryCtxSetFlags_v2(device, waitsAsleep); result != contextIsActive)
    driver.check(result, "cuda: flags of the context of " + name);
  driver.check(driver.cuDevicePrimaryCtxRetain(&context, device), "cuda: context of " + name);
  try {
    const Use use(*this);
    driver.check(driver.cuModuleLoadData(&module, image.data()),
                 "cuda: kernels of octconv.fatbin for " + name + ", sm_" + std::to_string(capability));
  } catch (...) {
    driver.cuDevicePrimaryCtxRelease_v2(device);
    throw;
  }
}
Context::~Context() {
  giveBack([&](const Driver& driver) { driver.cuModuleUnload(module); });
  Driver::get().cuDevicePrimaryCtxRelease_v2(device);
}

Context::Use::Use(const Context& context) {
  const Driver& driver = Driver::get();
  driver.check(driver.cuCtxPushCurrent_v2(context.context), "cuda: " + context.name);
}
Context::Use::~Use() {
  CUcontext context = nullptr;
  Driver::get().cuCtxPopCurrent_v2(&context);
}

void Context::giveBack(FunctionRef<void(const Driver&)> release) const noexcept {
  // The first push may report an earlier failure.
  for (int attempt = 0; attempt < 2; attempt++) {
    try {
      const Use use(*this);
      return release(Driver::get());
    } catch (const std::exception&) {}
  }
}

void Context::add(Keeper& keeper) {
  std::lock_guard lock(keepersMutex);
  keepers.insert(&keeper);
}
void Context::remove(Keeper& keeper) {
  std::lock_guard lock(keepersMutex);
  keepers.erase(&keeper);
}
void Context::allocate(FunctionRef<void()> call) {
  try {
    call();
  } catch (const OutOfMemory&) {
    threads::letGoNow();
    {
      std::lock_guard lock(keepersMutex);
      for (Keeper* const keeper : keepers) keeper->dropIdle();
    }
    call();
  }
}

CUfunction Context::function(const std::string& kernel, size_t sharedBytes) {
  const Driver& driver = Driver::get();
  const Use use(*this);
  std::lock_guard lock(mutex);
  auto found = functions.find(kernel);
  if (found == functions.end()) {
    constexpr size_t always = 48 << 10;
    CUfunction handle = nullptr;
    driver.check(driver.cuModuleGetFunction(&handle, module, kernel.c_str()), "cuda: kernel " + kernel);
    found = functions.emplace(kernel, Function{handle, always}).first;
  }
  auto& [handle, most] = found->second;
  if (sharedBytes > most) {
    driver.check(driver.cuFuncSetAttribute(handle, maxDynamicSharedBytes, static_cast<int>(sharedBytes)),
                 "cuda: shared memory of " + kernel);
    most = sharedBytes;
  }
  return handle;
}

// --- Gpu -------------------------------------------------------------------------------------------------------------

// Never destroyed: threads may outlive main.
static std::mutex& guard() {
  static auto& mutex = *new std::mutex;
  return mutex;
}
static std::map<int, std::unique_ptr<Gpu>>& all() {
  static auto& gpus = *new std::map<int, std::unique_ptr<Gpu>>;
  return gpus;
}

int Gpu::count() {
  const Driver& driver = Driver::get();
  int count = 0;
  driver.check(driver.cuDeviceGetCount(&count), "cuda: number of GPUs");
  if (count == 0) fail("cuda: the driver finds no GPU");
  return count;
}

Gpu::Gpu(int index)
    : name(nameAt(Driver::get(), index)),
      capability(attributeOf(Driver::get(), index, computeCapabilityMajor) * 10 +
                 attributeOf(Driver::get(), index, computeCapabilityMinor)),
      memory(memoryOf(Driver::get(), index)),
      multiprocessors(attributeOf(Driver::get(), index, multiprocessorCount)),
      sharedBytes(static_cast<size_t>(attributeOf(Driver::get(), index, mostSharedBytes))),
      fmaPerClock(fmaPerClockOf(capability)),
      computes(computesOf(capability)),
      bus(busOf(Driver::get(), index)),
      index(index) {
  if (const int oldest = architectures[0].capability; capability < oldest)
    fail("cuda: ", name, " is of architecture sm_", capability, ", wanted sm_", oldest, " or newer");
  if (multiprocessors < 1) fail("cuda: ", name, " has ", multiprocessors, " multiprocessors");
  openFatbin();
}
Gpu::Gpu(std::string architecture, int capability, int multiprocessors, size_t sharedBytes)
    : name(std::move(architecture)),
      capability(capability),
      memory(0),
      multiprocessors(multiprocessors),
      sharedBytes(sharedBytes),
      fmaPerClock(fmaPerClockOf(capability)),
      computes(computesOf(capability)),
      index(-1) {}

Gpu& Gpu::get(int index) {
  std::lock_guard lock(guard());
  auto& gpu = all()[index];
  if (!gpu) gpu.reset(new Gpu(index));
  return *gpu;
}

Gpu& Gpu::absent(const std::string& architecture) {
  static auto& gpus = *new std::map<std::string, std::unique_ptr<Gpu>>;
  std::string known;
  for (const Architecture& one : architectures) {
    const std::string each = "sm_" + std::to_string(one.capability);
    known += (known.empty() ? "" : ", ") + each;
    if (each != architecture) continue;
    std::lock_guard lock(guard());
    auto& gpu = gpus[architecture];
    if (!gpu) gpu.reset(new Gpu(architecture, one.capability, one.multiprocessors, size_t{1024} * one.sharedKiB));
    return *gpu;
  }
  fail("wanted an architecture that has kernels: ", known);
}

std::string Gpu::about() const {
  const std::string architecture = "sm_" + std::to_string(capability);
  return index < 0 ? architecture : architecture + ", " + name;
}

void Gpu::close() {
  std::lock_guard lock(guard());
  for (const auto& [_, gpu] : all()) {
    if (!gpu) continue;
    std::lock_guard own(gpu->mutex);
    gpu->heldConvolutions.reset();
    gpu->held.reset();
  }
}

void Gpu::checkPresent() const {
  if (index < 0) fail("cuda:", name, " compiles plans and runs none: wanted a GPU, as in cuda");
}

std::shared_ptr<Context> Gpu::context() {
  if (index < 0) return nullptr;
  std::lock_guard lock(mutex);
  if (!held) held = std::make_shared<Context>(index, name, capability);
  return held;
}

std::shared_ptr<Convolutions> Gpu::convolutions() {
  const auto made = context();
  std::lock_guard lock(mutex);
  if (!heldConvolutions) heldConvolutions = std::make_shared<Convolutions>(made);
  return heldConvolutions;
}

// --- What is made in a context ---------------------------------------------------------------------------------------

Block::Block(std::shared_ptr<Context> made, size_t bytes, Where where)
    : context(std::move(made)), size_(bytes), where(where) {
  if (bytes == 0) return;
  if (!context) {
    if (where == Where::pinned) address = reinterpret_cast<CUdeviceptr>(new char[bytes]);
    return;
  }
  const Context::Use use(*context);
  context->allocate([this] { allocate(); });
}
void Block::allocate() {
  const Driver& driver = Driver::get();
  if (where == Where::device) {
    driver.check(driver.cuMemAlloc_v2(&address, size_),
                 "cuda: " + std::to_string(size_) + " bytes on " + context->name);
  } else {
    void* pointer = nullptr;
    driver.check(driver.cuMemHostAlloc(&pointer, size_, 0),
                 "cuda: " + std::to_string(size_) + " pinned bytes for " + context->name);
    address = reinterpret_cast<CUdeviceptr>(pointer);
  }
}
Block& Block::operator=(Block&& other) noexcept {
  std::swap(context, other.context), std::swap(address, other.address);
  std::swap(size_, other.size_), std::swap(where, other.where);
  return *this;
}
Block::~Block() {
  if (!address) return;
  if (!context) {
    delete[] host();
    return;
  }
  context->giveBack([&](const Driver& driver) {
    where == Where::device ? driver.cuMemFree_v2(address) : driver.cuMemFreeHost(host());
  });
}

Stream::Stream(std::shared_ptr<Context> made) : context(std::move(made)) {
  const Context::Use use(*context);
  context->allocate([this] {
    Driver::get().check(Driver::get().cuStreamCreate(&stream, nonBlockingStream), "cuda: a stream of " + context->name);
  });
}
Stream::~Stream() {
  context->giveBack([&](const Driver& driver) { driver.cuStreamDestroy_v2(stream); });
}
void Stream::wait() const {
  const Context::Use use(*context);
  Driver::get().check(Driver::get().cuStreamSynchronize(stream), "cuda: work on " + context->name);
}

Event::Event(std::shared_ptr<Context> made) : context(std::move(made)) {
  const Context::Use use(*context);
  Driver::get().check(Driver::get().cuEventCreate(&event, 0), "cuda: an event of " + context->name);
}
Event::~Event() {
  context->giveBack([&](const Driver& driver) { driver.cuEventDestroy_v2(event); });
}

Graph::Graph(std::shared_ptr<Context> made, const Stream& stream, FunctionRef<void()> work) : context(std::move(made)) {
  const Driver& driver = Driver::get();
  const Context::Use use(*context);
  driver.check(driver.cuStreamBeginCapture_v2(stream, threadLocalCapture), "cuda: begin of a graph's capture");
  CUgraph graph = nullptr;
  const auto drop = [&] {
    if (graph) driver.cuGraphDestroy(graph);
  };
  std::exception_ptr error;
  try {
    work();
  } catch (...) { error = std::current_exception(); }
  const CUresult ended = driver.cuStreamEndCapture(stream, &graph);
  try {
    if (ended == captureUnsupported || ended == captureInvalidated) throw NotCaptured("cuda: a capture was ended");
    if (error) std::rethrow_exception(error);
    driver.check(ended, "cuda: end of a graph's capture");
    context->allocate([&] {
      driver.check(driver.cuGraphInstantiateWithFlags(&executable, graph, 0), "cuda: instantiation of a graph");
    });
  } catch (...) {
    drop();
    throw;
  }
  drop();  // the executable does not need it
}
Graph::~Graph() {
  context->giveBack([&](const Driver& driver) { driver.cuGraphExecDestroy(executable); });
}

void Resident::read(std::span<std::byte> to) const {
  const auto& context = block.owner();
  const Block pinned(context, block.size(), Block::Where::pinned);
  const Stream stream(context);
  const Context::Use use(*context);
  Driver::get().check(Driver::get().cuMemcpyDtoHAsync_v2(pinned.host(), block.device(), block.size(), stream),
                      "cuda: a copy");
  stream.wait();
  std::memcpy(to.data(), pinned.host(), to.size());
}

Block uploaded(Gpu& gpu, const Block& pinned) {
  const auto context = gpu.context();
  Block block(context, pinned.size(), Block::Where::device);
  if (!context) return block;
  const Stream stream(context);
  const Context::Use use(*context);
  Driver::get().check(Driver::get().cuMemcpyHtoDAsync_v2(block.device(), pinned.host(), pinned.size(), stream),
                      "cuda: a copy");
  stream.wait();
  return block;
}

}  // namespace octconv::cuda
