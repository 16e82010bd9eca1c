// What a device is. A folder (native/cpu, native/reference, native/cuda) defines one and its table of kernels; all else
// sees this.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <span>

#include "histogram.h"
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
  size_t pitchAlign = 1;    // the same where these zeros are at most a 32nd of them
  Fuses fuses = Fuses::nothing;
  int mostPooled = 2;       // how often P is applied to what a convolution stores, at most
  bool subBatches = false;  // goes over a batch some images at a time
  bool inPlace = false;     // a convolution may store y where its residual lies
  // Hints that it knows, and of i8 the most that each sums up: 2 and 4 input channels, overTime products.
  std::map<std::string, int64_t> winograd;
  std::vector<DType> computes{DType::f32};  // what convolutions may multiply
  std::vector<DType> dotProducts;           // what of it is faster than f32
  size_t idleBytes = size_t{32} << 20;      // that the plans of a model may keep between runs, unless told otherwise
  bool ownMemory = false;                   // not the host's: values may stay there between runs, in Buffers
  std::map<std::string, OpTraits> ops;      // that it has a kernel for
};

// A value in memory of a device.
struct Buffer {
  virtual ~Buffer() = default;
  virtual size_t bytes() const = 0;
  virtual void read(std::span<std::byte> to) const = 0;  // takes long
};
using Buffers = std::vector<std::shared_ptr<const Buffer>>;

// One run: what it reads and writes is its own memory, which the caller fills and reads.
struct Request {
  virtual ~Request() = default;
  std::vector<std::span<std::byte>> inputs, outputs;
  Buffers kept;                         // outputs that stay on the device
  std::vector<float> stepMilliseconds;  // of each step, or one for all of them together, or none if not wanted
  std::vector<Histogram> histograms;    // of PlanSpec::observed
  std::atomic<bool> stop = false;       // may be set at any time
  bool completed = false;               // false if it was stopped or failed
  std::string error;                    // why it failed
};

// What a step starts on a GPU.
struct LaunchInfo {
  std::string kernel;
  unsigned blocks, threads;  // threads of a block
  size_t sharedBytes;        // dynamic shared memory of a block
  // Of products on tensor cores, with all that fills up tiles:
  // Pixels x channels of a block, `/n` where n blocks share a tile; of two branches `+` between them.
  std::string tile = {};
  int64_t multiplyAdds = 0;  // of the launch
  int64_t operandBytes = 0;  // that all blocks together copy into shared memory
};

// What `info --plan` shows of a step.
struct StepInfo {
  std::string algorithm;
  std::vector<LaunchInfo> launches = {};  // on a GPU
  size_t scratchBytes = 0;                // that they write and read again
};

// A compiled plan. It may have any number of runs at a time.
struct Program : std::enable_shared_from_this<Program> {
  virtual ~Program() = default;
  virtual size_t runBytes() const = 0;            // memory of one run: values and scratch
  virtual size_t idleBytes() const { return 0; }  // memory that is kept for the next runs
  virtual void trim() {}                          // gives that back
  virtual const std::vector<StepInfo>& steps() const = 0;
  virtual std::shared_ptr<Request> prepare() = 0;
  // Of a run whose outputs stay on the device, where inputs lie already, but those that are null.
  virtual std::shared_ptr<Request> prepareOnDevice(Buffers) { fail("plan: this device has no memory of its own"); }
  // Never blocks. Calls `done` once, on any thread.
  virtual void start(std::shared_ptr<Request> request, std::function<void()> done) = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const Traits& traits() const = 0;
  // Parameters that were packed for one node serve any other for which this is the same.
  virtual std::string format(const std::string& op, const Attr& attrs) const = 0;
  // These may take long.
  virtual std::shared_ptr<const Packed> pack(const std::string& op, const Attr& attrs, const Params& params,
                                             Crew& crew) const = 0;
  virtual std::shared_ptr<Program> compile(PlanSpec spec) const = 0;  // the spec is complete
  // What it tells of its state, by name and unit: clocks, temperature.
  virtual std::map<std::string, double> sensors() const { return {}; }
  virtual std::shared_ptr<const Buffer> write(std::span<const std::byte>) const {
    fail("this device has no memory of its own");
  }

  // `cpu`, or of a kind of several `cuda` or `cuda:0`, `cuda:1`, ...; `cuda:sm_90` compiles plans, without a GPU, and
  // runs none. Throws the reason if there is none of this name.
  static Device& find(const std::string& name);
  // Of all kinds, DeviceKind::close.
  static void closeAll();
};

// What is registered under the name of a kind of device. `open` and `count` throw the reason if this machine has none.
struct DeviceKind {
  Device& (*open)(int index);
  int (*count)() = nullptr;   // null: one
  void (*close)() = nullptr;  // gives back what no plan and no parameters need; what is used after it is opened again
  Device& (*plan)(const std::string& architecture) = nullptr;  // a device that compiles plans and runs none
};

}  // namespace octconv
