// A plan: the recorded steps of a network for one input shape, device and thread count. Memory is planned once (by
// lib/graph/memory.ts), kernels are made once; a run takes the addresses of its inputs and outputs and goes through.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>

#include "memory.h"
#include "op.h"
#include "pool.h"

namespace octconv {

struct PlanSpec {
  enum class Place { arena, input, output };
  struct Value {
    TensorType type;
    Place place = Place::arena;
    size_t at = 0;       // byte offset in the arena, or index among the run's inputs or outputs
    int64_t rounds = 1;  // how many of it lie one after the other: the next round of a segment takes the next one
  };
  struct Step {
    Node node;  // inputs and outputs are filled in from the values
    std::vector<size_t> inputs, outputs;
  };
  Device device = Device::cpu;
  int threads = 1;
  size_t arenaBytes = 0, inputs = 0, outputs = 0;
  std::vector<Value> values;
  std::vector<Step> steps;
  // Steps that go round: a batch some images at a time.
  struct Segment {
    size_t steps;
    int64_t rounds;
  };
  std::vector<Segment> segments;
};

class Plan {
 public:
  explicit Plan(PlanSpec spec);  // throws Error where a step does not fit its op or a value does not fit the memory

  struct Request {
    std::vector<void*> inputs, outputs;
    float* stepMilliseconds = nullptr;  // one per step, or null
    std::shared_ptr<std::atomic<bool>> cancelled = std::make_shared<std::atomic<bool>>(false);
  };
  // Goes through the steps on the calling thread and its gang. False if it was cancelled before its end.
  bool run(Request& request, Gang& gang);

  const PlanSpec spec;
  std::vector<Kernel> kernels;
  size_t runBytes() const { return runBytes_; }  // memory of one run: arena and scratch
  size_t inputBytes(size_t i) const { return boundaryBytes(PlanSpec::Place::input, i); }
  size_t outputBytes(size_t i) const { return boundaryBytes(PlanSpec::Place::output, i); }

 private:
  size_t boundaryBytes(PlanSpec::Place place, size_t i) const;

  size_t sharedAt = 0, scratchAt = 0, scratchStride = 0, runBytes_ = 0;
  std::mutex mutex;
  // Of runs that have ended, for the next ones: in the steady state a run allocates nothing.
  struct Room {
    Memory block;
    Run run;
  };
  std::vector<Room> idle;
};

}  // namespace octconv
