// What a kernel in host memory is, for the devices `cpu` and `reference`.
#pragma once
#include <algorithm>
#include <functional>

#include "../core/function_ref.h"
#include "../core/node.h"
#include "../core/registry.h"

namespace octconv {

class Crew;

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
  void parallel(int64_t tasks, Body body) { parallel(tasks, tasks, body); }
  void parallel(int64_t tasks, int64_t adjacent, Body body);  // as Crew's

 private:
  friend class HostProgram;
  Crew* crew = nullptr;
  char* scratch = nullptr;
  size_t scratchStride = 0;
};

// A node made ready to run many times: all that depends on shapes is worked out.
struct Kernel {
  std::function<void(Run&)> run;
  size_t sharedBytes = 0, threadBytes = 0;  // scratch, see Run
  std::string algorithm = {};               // StepInfo::algorithm
};

// An entry of a device's table; `Device` is Cpu or Reference.
template <class Device>
struct Kernels {
  Kernel (*make)(const Node& node, int threads);  // the node keeps its contract
  std::vector<DType> dtypes = {DType::f32};       // of inputs
  std::shared_ptr<const Packed> (*pack)(const Attr& attrs, const Params& params, Crew& crew) = nullptr;
  std::string (*format)(const Attr& attrs) = nullptr;  // null: weights are packed one way
  bool pitched = false;                                // OpTraits::pitched
};
struct Cpu;
struct Reference;

// Of an op without parameters whose kernel takes any pitch.
template <class Device>
Kernels<Device> pitched(Kernel (*make)(const Node& node, int threads), std::vector<DType> dtypes = {DType::f32}) {
  return {make, std::move(dtypes), nullptr, nullptr, true};
}

// Splits [0, count) into pieces of about equal size that a thread takes as one task.
inline int64_t pieces(int64_t count, int64_t smallest) {
  return std::max<int64_t>(1, count / std::max<int64_t>(1, smallest));
}
struct Range {
  int64_t begin, end;
};
inline Range piece(int64_t count, int64_t parts, int64_t i) { return {count * i / parts, count * (i + 1) / parts}; }

}  // namespace octconv
