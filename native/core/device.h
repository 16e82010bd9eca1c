// What a device is. A folder (native/cpu, native/reference) defines one and its table of kernels; all else sees this.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <span>

#include "plan.h"

namespace octconv {

class Crew;

// Of a device's kernel for an op.
struct OpTraits {
  std::vector<DType> dtypes;  // of inputs
  bool pitched = false;       // takes values with gaps between pixels, and leaves what is in them
};

// What of the steps around it becomes part of a convolution: nothing, the graph is taken as recorded; of a convolution
// with one input its bias, batch normalisation, residual and ReLU; or all that the contract of octConv has.
enum class Fuses { nothing, epilogues, all };

// What graph passes want to know of a device (lib/targets.ts).
struct Traits {
  std::string isa;          // instruction set or architecture, for people
  int threads = 0;          // that a run has unless told otherwise
  size_t align = 64;        // of values in the arena, in bytes
  size_t channelAlign = 1;  // zeros behind the channels of a pixel fill them up to multiples, in bytes
  Fuses fuses = Fuses::nothing;
  int mostPooled = 2;                   // how often P is applied to what a convolution stores, at most
  bool subBatches = false;              // goes over a batch some images at a time
  std::map<int64_t, int64_t> winograd;  // hints `winograd` that it knows, and the most channels of i8 that each sums up
  std::vector<DType> dotProducts;       // what it multiplies faster than f32: bf16, i8
  std::map<std::string, OpTraits> ops;  // that it has a kernel for
};

// One run: what it reads and writes is its own memory, which the caller fills and reads.
struct Request {
  virtual ~Request() = default;
  std::vector<std::span<std::byte>> inputs, outputs;
  std::vector<float> stepMilliseconds;  // as many as steps, or none if they are not wanted
  std::atomic<bool> stop = false;       // may be set at any time
  bool completed = false;               // false if it was stopped or failed
  std::string error;                    // why it failed
};

struct StepInfo {
  std::string algorithm;  // what `info --plan` shows
};

// A compiled plan. It may have any number of runs at a time.
struct Program : std::enable_shared_from_this<Program> {
  virtual ~Program() = default;
  virtual size_t runBytes() const = 0;            // memory of one run: values and scratch
  virtual size_t idleBytes() const { return 0; }  // memory that is kept for the next runs
  virtual void trim() {}                          // gives that back
  virtual std::vector<StepInfo> steps() const = 0;
  virtual std::shared_ptr<Request> prepare() = 0;
  // Never blocks. Calls `done` once, on any thread.
  virtual void start(std::shared_ptr<Request> request, std::function<void()> done) = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const Traits& traits() const = 0;
  // Parameters that were packed for one node serve any other for which this is the same.
  virtual std::string format(const std::string& op, const Attr& attrs) const = 0;
  // Both may take long.
  virtual std::shared_ptr<const Packed> pack(const std::string& op, const Attr& attrs, const Params& params,
                                             Crew& crew) const = 0;
  virtual std::shared_ptr<Program> compile(PlanSpec spec) const = 0;  // the spec is complete

  // `cpu`, or of a kind of several `cuda` or `cuda:0`, `cuda:1`, ... Throws the reason if there is none of this name.
  static Device& find(const std::string& name);
  // Of all kinds, DeviceKind::close.
  static void closeAll();
};

// What is registered under the name of a kind of device. Both throw the reason if this machine has none.
struct DeviceKind {
  Device& (*open)(int index);
  int (*count)() = nullptr;   // null: one
  void (*close)() = nullptr;  // gives back what no plan and no parameters need; what is used after it is opened again
};

}  // namespace octconv
