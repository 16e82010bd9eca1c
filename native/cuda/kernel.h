// What a kernel of the NVIDIA device is.
#pragma once
#include <string>
#include <vector>

#include "../core/node.h"
#include "../core/registry.h"
#include "gpu.h"

namespace octconv {
class Crew;
}

namespace octconv::cuda {

// One launch. The kernel's parameters are a structure, whose bytes these are, and the address of the arena.
struct Launch {
  std::string kernel;
  unsigned blocks, threads;
  size_t sharedBytes;
  std::vector<char> arguments;
};

template <class Arguments>
Launch launchOf(std::string kernel, unsigned blocks, unsigned threads, size_t sharedBytes, const Arguments& arguments) {
  const auto* first = reinterpret_cast<const char*>(&arguments);
  return {std::move(kernel), blocks, threads, sharedBytes, {first, first + sizeof arguments}};
}

// A node with its place in a run's memory: byte offsets of its inputs and outputs in the arena.
struct PlacedNode {
  const Node& node;
  std::vector<int64_t> inputs, outputs;
};

struct Made {
  std::vector<Launch> launches;
  std::string algorithm;  // StepInfo::algorithm
};

// An entry of the device's table: a file of an op registers it as Registered<Kernels>.
struct Kernels {
  Made (*make)(const PlacedNode& placed);
  std::vector<DType> dtypes = {DType::f32};  // of inputs
  std::shared_ptr<const Packed> (*pack)(Gpu& gpu, const Attr& attrs, const Params& params, Crew& crew) = nullptr;
  std::string (*format)(const Attr& attrs) = nullptr;  // null: weights are packed one way
  bool pitched = false;                                // OpTraits::pitched
};

}  // namespace octconv::cuda
