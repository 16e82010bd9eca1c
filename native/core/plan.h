// A plan as data: the steps of a network for one input shape, and where each value lies. lib/plan.ts makes it.
#pragma once
#include "node.h"

namespace octconv {

struct PlanSpec {
  enum class Place { arena, input, output };
  struct Value {
    TensorType type;
    Place place = Place::arena;
    size_t at = 0;       // byte offset in the arena, or position among the run's inputs or outputs
    int64_t rounds = 1;  // slices stored back to back; round r of a segment uses slice r
    size_t bytes() const { return static_cast<size_t>(sum(product(type.stride(), rounds - 1), type.bytes())); }
  };
  struct Step {
    Node node;  // its types are filled in from the values
    std::vector<size_t> inputs, outputs;
  };
  // Steps that run `rounds` times: a batch some images at a time.
  struct Segment {
    size_t steps;
    int64_t rounds;
  };
  int threads = 1;         // of a run on the CPU
  bool cudaGraphs = true;  // whether runs on an NVIDIA GPU replay a captured graph of the launches
  size_t arenaBytes = 0;
  std::vector<Value> values;
  std::vector<Step> steps;
  std::vector<Segment> segments;  // none: all steps once
  std::vector<size_t> observed;   // inputs, and values that a step writes, of which a run makes histograms

  std::vector<size_t> inputBytes, outputBytes;  // of the run's inputs and outputs, filled in from the values
};

struct Traits;

// Fills in what follows from the rest, and checks all of it: values lie inside of their places, segments cover the
// steps, each node keeps its op's contract, and the device has a kernel for it. Throws Error.
void complete(PlanSpec& spec, const std::string& device, const Traits& traits);

}  // namespace octconv
