// A step of a plan, as plain data: an op, its attributes, the types of its inputs and outputs, its parameters.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "attrs.h"
#include "memory.h"
#include "tensor.h"

namespace octconv {

// A parameter as it comes from a weight file: PyTorch's layout (OIHW, OITHW, or a vector), raw bits of its type.
struct Param {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::shared_ptr<const Memory> memory;  // holds the elements
  const char* data = nullptr;            // the first of them

  int64_t elements() const;
  size_t bytes() const;
  std::vector<float> floats() const;                              // f32, f16, bf16 or i8 as f32
  std::vector<float> floats(int64_t first, int64_t count) const;  // some of them
};
using Params = std::map<std::string, Param>;

// Parameters in the form that a device's kernel reads; shared by all plans of a model.
struct Packed {
  virtual ~Packed() = default;
  virtual size_t bytes() const = 0;
};

struct Node {
  std::string op, name;
  Attr attrs;
  std::vector<TensorType> inputs, outputs;
  std::vector<std::shared_ptr<const Packed>> packed;  // one; of octConv one per branch

  template <class P>
  const P& weights(size_t i = 0) const {
    const P* held = i < packed.size() ? dynamic_cast<const P*>(packed[i].get()) : nullptr;
    if (!held) fail(op, ": the weights of '", name, "' were not packed for this op");
    return *held;
  }
  void want(size_t inputCount, size_t outputCount) const;  // counts of inputs and outputs
  void wantOneType() const;                                // all of one data type, and one scale
  const Shape& in(size_t i) const;
  const Shape& out(size_t i) const;
};

// What an op demands of a node, on every device: a file of the op registers it as Registered<Contract>.
struct Contract {
  void (*check)(const Node& node);
  bool keepsType = true;    // inputs and outputs are of one data type and scale
  bool mixesTypes = false;  // each input and output is of any type that the device has a kernel for
};

}  // namespace octconv
