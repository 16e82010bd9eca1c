// What an op is. An op's file registers one `Op`: how its parameters are packed once per model, and how a node of the
// plan becomes a `Kernel`: checked, with all that depends on shapes worked out, ready to run many times.
#pragma once
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "attrs.h"
#include "function_ref.h"
#include "tensor.h"

namespace octconv {

enum class Device { reference, cpu };
inline const char* nameOf(Device device) { return device == Device::cpu ? "cpu" : "reference"; }

// A parameter as it comes from a weight file: PyTorch's layout (OIHW, OITHW, or a vector), raw bits of its type.
struct Param {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  const void* data = nullptr;

  int64_t elements() const;
  std::vector<float> floats() const;                              // f32, f16, bf16 or i8 as f32
  std::vector<float> floats(int64_t first, int64_t count) const;  // some of them
};
using Params = std::map<std::string, Param>;

// Parameters in the form that an op's kernel reads; shared by all plans of a model.
struct Packed {
  virtual ~Packed() = default;
  virtual size_t bytes() const = 0;
};

// One step of a plan before it is compiled.
struct Node {
  std::string op, name;
  Attr attrs;
  std::vector<TensorType> inputs, outputs;
  std::shared_ptr<const Packed> packed;
  int threads = 1;  // of a run, for cutting the work

  template <class P>
  const P& weights() const {
    const P* held = dynamic_cast<const P*>(packed.get());
    if (!held) fail(op, ": the weights of '", name, "' were not packed for this op");
    return *held;
  }
  void want(size_t inputCount, size_t outputCount) const;  // counts of inputs and outputs
  void wantF32() const;                                    // every input and output is f32
  void wantOneType() const;                                // all are f32, or bf16, or u8 of one scale
  const Shape& in(size_t i) const;
  const Shape& out(size_t i) const;
};

// What a kernel sees while it runs: the addresses of this run, scratch memory, and the threads.
class Run {
 public:
  std::vector<void*> inputs, outputs;
  char* shared = nullptr;  // Kernel::sharedBytes, for all threads of the step

  template <class T>
  const T* in(size_t i) const {
    return static_cast<const T*>(inputs[i]);
  }
  template <class T>
  T* out(size_t i) const {
    return static_cast<T*>(outputs[i]);
  }

  // Calls body(task, scratch) for task = 0 .. tasks-1 on this run's threads; scratch has Kernel::threadBytes bytes.
  // Which thread takes which task is open, so a result must not depend on it.
  using Body = FunctionRef<void(int64_t task, char* scratch)>;
  void parallel(int64_t tasks, Body body);

 private:
  friend class Plan;
  class Gang* gang = nullptr;
  char* scratch = nullptr;
  size_t scratchStride = 0;
};

struct Kernel {
  std::function<void(Run&)> run;
  size_t sharedBytes = 0, threadBytes = 0;  // scratch, see Run
  std::string algorithm = {};               // what `info --graph` shows
};

struct Op {
  Kernel (*make)(const Node& node, Device device);
  std::shared_ptr<const Packed> (*pack)(const Attr& attrs, const Params& params, Device device);  // null: no parameters
};

// The one table of ops; an op's file adds itself with `static const Register op{"name", make, pack};`.
class Register {
 public:
  Register(const char* name, decltype(Op::make) make, decltype(Op::pack) pack = nullptr);
  static const Op& find(const std::string& name, Device device);
};

// Splits [0, count) into pieces of about equal size that a thread takes as one task.
inline int64_t pieces(int64_t count, int64_t smallest) {
  return std::max<int64_t>(1, count / std::max<int64_t>(1, smallest));
}
struct Range {
  int64_t begin, end;
};
inline Range piece(int64_t count, int64_t parts, int64_t i) { return {count * i / parts, count * (i + 1) / parts}; }

}  // namespace octconv
