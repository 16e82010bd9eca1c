// What a kernel of the NVIDIA device is.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "../core/device.h"
#include "../core/node.h"
#include "../core/registry.h"
#include "gpu.h"
#include "tensor.h"

namespace octconv {
class Crew;
}

namespace octconv::cuda {

// One launch. The kernel's parameters are a structure, whose bytes these are, and the address of the arena.
struct Launch : LaunchInfo {
  std::vector<char> arguments;
  // In place of a kernel: lets another library give its work to the stream.
  std::function<void(CUdeviceptr arena, CUstream stream)> call = {};
};

template <class Arguments>
Launch launchOf(std::string kernel, unsigned blocks, unsigned threads, size_t sharedBytes, const Arguments& arguments) {
  const auto* first = reinterpret_cast<const char*>(&arguments);
  return {{std::move(kernel), blocks, threads, sharedBytes}, {first, first + sizeof arguments}};
}

// Types of inputs: `floats` of kernels that compute, `elements` of kernels that only move elements.
inline const std::vector<DType> floats{DType::f32, DType::f16, DType::bf16};
inline const std::vector<DType> elements{DType::f32, DType::f16, DType::bf16, DType::u8};

// A node with its place in a run's memory, in bytes from the arena's begin.
struct PlacedNode {
  const Node& node;
  const Gpu& gpu;
  int64_t scratch;  // Made::scratchBytes, which all steps share
  std::vector<int64_t> inputs, outputs;

  TensorArgs input(size_t i) const { return tensorOf(node.inputs[i], inputs[i]); }
  TensorArgs output(size_t i) const { return tensorOf(node.outputs[i], outputs[i]); }
};

struct Made {
  std::vector<Launch> launches;
  std::string algorithm;  // StepInfo::algorithm
  size_t scratchBytes = 0;
  bool writesPads = false;  // of outputs; otherwise a launch before these does
};

// An entry of the device's table: a file of an op registers it as Registered<Kernels>.
struct Kernels {
  Made (*make)(const PlacedNode& placed);
  std::vector<DType> dtypes = {DType::f32};  // of inputs
  std::shared_ptr<const Packed> (*pack)(Gpu& gpu, const Attr& attrs, const Params& params, Crew& crew) = nullptr;
  std::string (*format)(const Attr& attrs) = nullptr;  // null: weights are packed one way
  bool pitched = false;                                // OpTraits::pitched
};
// The same, of the device that computes with cuDNN what cuDNN has.
struct CudnnKernels : Kernels {};

}  // namespace octconv::cuda
