// The NVIDIA GPUs as devices: `cuda` is the first one, `cuda:1` the second. `cuda:sm_90` is a GPU that is not there.
// `cudnn` and `cudnn:1` are the same GPUs, where cuDNN computes the convolutions.
#include "../core/device.h"

#include <algorithm>
#include <cstring>
#include <iomanip>
#include <iterator>

#include "cudnn.h"
#include "nvml.h"
#include "program.h"

namespace octconv::cuda {
namespace {

// A table of kernels: what an op has there.
using Find = const Kernels& (*)(const std::string& op);

const Kernels& ours(const std::string& op) {
  const Kernels* kernels = Registered<Kernels>::find(op);
  if (!kernels) fail(op, ": no kernel on cuda");
  return *kernels;
}
const Kernels& ofCudnn(const std::string& op) {
  const Kernels* kernels = Registered<CudnnKernels>::find(op);
  return kernels ? *kernels : ours(op);
}

class CudaDevice : public Device {
 public:
  CudaDevice(Gpu& gpu, Find find) : gpu(gpu), find(find) {
    std::ostringstream about;
    about << gpu.about();
    if (gpu.memory > 0) {
      about << ", " << std::fixed << std::setprecision(1) << static_cast<double>(gpu.memory) / (1 << 30) << " GiB";
    } else {
      about << ", compiles plans and runs none";
    }
    if (find == ofCudnn) about << ", cuDNN " << Cudnn::get().version;
    traits_.isa = about.str();
    traits_.threads = 1;
    traits_.align = 256;
    traits_.channelAlign = find == ofCudnn ? 1 : 16;
    traits_.fuses = find == ofCudnn ? Fuses::epilogues : Fuses::all;
    traits_.ownMemory = true;
    traits_.idleBytes = gpu.memory / 16;  // an arena of a large batch is hundreds of MiB
    traits_.mostPooled = 1;               // P of P needs pixels of other tiles
    traits_.computes = gpu.computes;
    if (find == ofCudnn && gpu.capability < 80) traits_.computes.push_back(DType::f32);  // without tensor cores
    std::ranges::copy_if(traits_.computes, std::back_inserter(traits_.dotProducts),
                         [](DType type) { return type != DType::f32; });
    for (const auto& [op, _] : Registered<Kernels>::all())
      traits_.ops.emplace(op, OpTraits{find(op).dtypes, find(op).pitched});
  }
  const Traits& traits() const override { return traits_; }

  std::string format(const std::string& op, const Attr& attrs) const override {
    const Kernels& kernels = find(op);
    return kernels.format ? kernels.format(attrs) : "";
  }
  std::shared_ptr<const Packed> pack(const std::string& op, const Attr& attrs, const Params& params,
                                     Crew& crew) const override {
    const Kernels& kernels = find(op);
    if (!kernels.pack) fail(op, ": this op has no parameters");
    return kernels.pack(gpu, attrs, params, crew);
  }
  std::shared_ptr<octconv::Program> compile(PlanSpec spec) const override {
    return std::make_shared<Program>(gpu, find, std::move(spec));
  }
  std::map<std::string, double> sensors() const override { return readings(gpu.bus); }
  std::shared_ptr<const Buffer> write(std::span<const std::byte> bytes) const override {
    gpu.checkPresent();
    const Block pinned(gpu, bytes.size(), Block::Where::pinned);
    std::memcpy(pinned.host(), bytes.data(), bytes.size());
    return std::make_shared<Resident>(uploaded(gpu, pinned));
  }

 private:
  Gpu& gpu;
  const Find find;
  Traits traits_;
};

template <Find find>
Device& deviceOf(Gpu& gpu) {
  static std::mutex mutex;
  static auto& devices = *new std::map<Gpu*, std::unique_ptr<CudaDevice>>;  // never destroyed, as their GPUs
  std::lock_guard lock(mutex);
  auto& device = devices[&gpu];
  if (!device) device = std::make_unique<CudaDevice>(gpu, find);
  return *device;
}
template <Find find>
Device& open(int index) {
  return deviceOf<find>(Gpu::get(index));
}
Device& plan(const std::string& architecture) { return deviceOf<ours>(Gpu::absent(architecture)); }
int countWithCudnn() {
  const int count = Gpu::count();
  Cudnn::get();
  return count;
}

const Registered<DeviceKind> kinds[] = {{"cuda", {open<ours>, Gpu::count, Gpu::close, plan}},
                                        {"cudnn", {open<ofCudnn>, countWithCudnn, Gpu::close}}};

}  // namespace
}  // namespace octconv::cuda
