// The device `cpu`: fused kernels, for the widest instruction set that the CPU has.
#include "../core/threads.h"
#include "host_device.h"
#include "levels.h"
#include "winograd.h"

namespace octconv {

static Device& open(int) {
  static auto& device = *new HostDevice<Cpu>("cpu", [] {
    Traits traits;
    traits.isa = levelNames[static_cast<int>(level())];
    traits.threads = threads::hardware();
    traits.channelAlign = 4;  // words, which products of bf16 and i8 read
    // Layer1's conv3 of Oct-I3D-50, alpha .1: 15.5 -> 10.6 ms, 231 channels as 232. Pads of up to an eighth, to whole
    // vectors, gained MobileNet V2 2 % at most, and cost more.
    traits.pitchAlign = 32;
    traits.fuses = Fuses::all;
    traits.computes = {DType::f32, DType::bf16, DType::i8};
    traits.subBatches = true;
    traits.inPlace = true;
    for (const int64_t outputs : {2, 4}) traits.winograd[std::to_string(outputs)] = winogradChannels(outputs);
    traits.winograd["overTime"] = overTimeProducts;
    if (level() >= Level::avx512vnni) traits.dotProducts.push_back(DType::i8);
    if (level() >= Level::avx512bf16) traits.dotProducts.push_back(DType::bf16);
    return traits;
  }());
  return device;
}

static const Registered<DeviceKind> kind{"cpu", {open}};

}  // namespace octconv
