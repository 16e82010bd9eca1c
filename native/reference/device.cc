// The device `reference`: plain loops that specify every other device. It runs the graph as recorded.
#include "../core/threads.h"
#include "../cpu/host_device.h"

namespace octconv {

static Device& open(int) {
  static auto& device = *new HostDevice<Reference>("reference", [] {
    Traits traits;
    traits.isa = "plain loops";
    traits.threads = threads::hardware();
    traits.computes = {DType::f32, DType::bf16, DType::f16, DType::i8};
    return traits;
  }());
  return device;
}

static const Registered<DeviceKind> kind{"reference", {open}};

}  // namespace octconv
