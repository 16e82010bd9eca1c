// The NVIDIA GPUs as devices: `cuda` is the first one, `cuda:1` the second. `cudnn` and `cudnn:1` are the same GPUs,
// where cuDNN computes the convolutions.
#include "../core/device.h"

#include <iomanip>

#include "cudnn.h"
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
    about << "sm_" << gpu.capability << ", " << gpu.name << ", " << std::fixed << std::setprecision(1)
          << static_cast<double>(gpu.memory) / (1 << 30) << " GiB";
    if (find == ofCudnn) about << ", cuDNN " << Cudnn::get().version;
    traits_.isa = about.str();
    traits_.threads = 1;
    traits_.align = 256;
    traits_.fuses = find == ofCudnn ? Fuses::epilogues : Fuses::all;
    traits_.mostPooled = 1;  // P of P needs pixels of other tiles
    traits_.dotProducts = {DType::bf16};
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

 private:
  Gpu& gpu;
  const Find find;
  Traits traits_;
};

template <Find find>
Device& open(int index) {
  static std::mutex mutex;
  static auto& devices = *new std::map<int, std::unique_ptr<CudaDevice>>;  // never destroyed, as their GPUs
  Gpu& gpu = Gpu::get(index);
  std::lock_guard lock(mutex);
  auto& device = devices[index];
  if (!device) device = std::make_unique<CudaDevice>(gpu, find);
  return *device;
}
int countWithCudnn() {
  const int count = Gpu::count();
  Cudnn::get();
  return count;
}

const Registered<DeviceKind> kinds[] = {{"cuda", {open<ours>, Gpu::count, Gpu::close}},
                                        {"cudnn", {open<ofCudnn>, countWithCudnn, Gpu::close}}};

}  // namespace
}  // namespace octconv::cuda
