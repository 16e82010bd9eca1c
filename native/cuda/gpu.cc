#include "gpu.h"

#include <dlfcn.h>

#include <fstream>
#include <iterator>
#include <vector>

#include "../core/error.h"

namespace octconv::cuda {
namespace {

constexpr int oldestCapability = 80;

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
size_t memoryOf(const Driver& driver, int index) {
  size_t bytes = 0;
  driver.check(driver.cuDeviceTotalMem_v2(&bytes, deviceAt(driver, index)), "cuda: memory of a GPU");
  return bytes;
}

// The kernels of all architectures, a file beside the addon.
std::vector<char> fatbin() {
  Dl_info addon{};
  if (!dladdr(reinterpret_cast<const void*>(&deviceAt), &addon) || !addon.dli_fname)
    fail("cuda: where the addon lies is unknown");
  const std::string path = addon.dli_fname, file = path.substr(0, path.rfind('/') + 1) + "octconv.fatbin";
  std::ifstream stream(file, std::ios::binary);
  if (!stream) fail("cuda: octconv.fatbin is missing: npm run build:cuda");
  std::vector<char> image{std::istreambuf_iterator<char>(stream), {}};
  image.push_back(0);  // PTX is text
  return image;
}

}  // namespace

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
      multiprocessors(attributeOf(Driver::get(), index, multiprocessorCount)) {
  const Driver& driver = Driver::get();
  if (capability < oldestCapability)
    fail("cuda: ", name, " is of architecture sm_", capability, ", wanted sm_", oldestCapability, " or newer");
  const std::vector<char> image = fatbin();
  const CUdevice device = deviceAt(driver, index);
  driver.check(driver.cuDevicePrimaryCtxRetain(&context, device), "cuda: context of " + name);
  try {
    const Use use(*this);
    driver.check(driver.cuModuleLoadData(&module, image.data()), "cuda: octconv.fatbin on " + name);
  } catch (...) {
    driver.cuDevicePrimaryCtxRelease_v2(device);
    throw;
  }
}

Gpu& Gpu::get(int index) {
  static std::mutex mutex;
  static auto& gpus = *new std::map<int, std::unique_ptr<Gpu>>;  // never destroyed: threads may outlive main
  std::lock_guard lock(mutex);
  auto& gpu = gpus[index];
  if (!gpu) gpu.reset(new Gpu(index));
  return *gpu;
}

static thread_local CUcontext current = nullptr;
Gpu::Use::Use(const Gpu& gpu) : before(current) {
  const Driver& driver = Driver::get();
  if (current != gpu.context) driver.check(driver.cuCtxSetCurrent(gpu.context), "cuda: " + gpu.name);
  current = gpu.context;
}
Gpu::Use::~Use() {
  if (current != before) Driver::get().cuCtxSetCurrent(before);
  current = before;
}

CUfunction Gpu::function(const std::string& kernel, size_t sharedBytes) {
  const Driver& driver = Driver::get();
  std::lock_guard lock(mutex);
  auto found = functions.find(kernel);
  if (found == functions.end()) {
    CUfunction function = nullptr;
    driver.check(driver.cuModuleGetFunction(&function, module, kernel.c_str()), "cuda: kernel " + kernel);
    found = functions.emplace(kernel, function).first;
  }
  constexpr size_t always = 48 << 10;
  if (sharedBytes > always)
    driver.check(driver.cuFuncSetAttribute(found->second, maxDynamicSharedBytes, static_cast<int>(sharedBytes)),
                 "cuda: shared memory of " + kernel);
  return found->second;
}

Block::Block(Gpu& gpu, size_t bytes, Where where) : gpu(&gpu), size_(bytes), where(where) {
  if (bytes == 0) return;
  const Driver& driver = Driver::get();
  const Gpu::Use use(gpu);
  if (where == Where::device) {
    driver.check(driver.cuMemAlloc_v2(&address, bytes), "cuda: " + std::to_string(bytes) + " bytes on " + gpu.name);
  } else {
    void* pointer = nullptr;
    driver.check(driver.cuMemHostAlloc(&pointer, bytes, 0), "cuda: " + std::to_string(bytes) + " pinned bytes");
    address = reinterpret_cast<CUdeviceptr>(pointer);
  }
}

Block& Block::operator=(Block&& other) noexcept {
  std::swap(gpu, other.gpu), std::swap(address, other.address);
  std::swap(size_, other.size_), std::swap(where, other.where);
  return *this;
}

Stream::Stream(Gpu& gpu) : gpu(gpu) {
  const Gpu::Use use(gpu);
  Driver::get().check(Driver::get().cuStreamCreate(&stream, nonBlockingStream), "cuda: a stream");
}
Stream::~Stream() {
  try {
    const Gpu::Use use(gpu);
    Driver::get().cuStreamDestroy_v2(stream);
  } catch (const std::exception&) {  // the GPU is lost
  }
}
void Stream::wait() const {
  const Gpu::Use use(gpu);
  Driver::get().check(Driver::get().cuStreamSynchronize(stream), "cuda: work on " + gpu.name);
}

Block uploaded(Gpu& gpu, const Block& pinned) {
  Block block(gpu, pinned.size(), Block::Where::device);
  const Stream stream(gpu);
  const Gpu::Use use(gpu);
  Driver::get().check(
      Driver::get().cuMemcpyHtoDAsync_v2(block.device(), pinned.host(), pinned.size(), stream), "cuda: a copy");
  stream.wait();
  return block;
}

Block::~Block() {
  if (!address) return;
  const Driver& driver = Driver::get();
  try {
    const Gpu::Use use(*gpu);
    where == Where::device ? driver.cuMemFree_v2(address) : driver.cuMemFreeHost(host());
  } catch (const std::exception&) {  // the GPU is lost, and its memory with it
  }
}

}  // namespace octconv::cuda
