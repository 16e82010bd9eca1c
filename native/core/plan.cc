#include "plan.h"

#include <algorithm>
#include <chrono>

namespace octconv {

void Run::parallel(int64_t tasks, const Body& body) {
  gang->parallel(tasks,
                 [&](int64_t task, int slot) { body(task, scratch + static_cast<size_t>(slot) * scratchStride); });
}

static PlanSpec checked(PlanSpec spec) {
  if (spec.threads < 1 || spec.threads > 1024) fail("plan: threads must be 1 to 1024, got ", spec.threads);
  for (const PlanSpec::Value& value : spec.values) {
    const size_t limit = value.place == PlanSpec::Place::arena   ? spec.arenaBytes
                         : value.place == PlanSpec::Place::input ? spec.inputs
                                                                 : spec.outputs;
    const size_t need = value.place == PlanSpec::Place::arena ? value.type.bytes() : 1;
    if (value.at > limit || need > limit - value.at)
      fail("plan: a value ", value.type.shape, " at ", value.at, " does not fit into ", limit);
  }
  for (PlanSpec::Step& step : spec.steps) {
    step.node.threads = spec.threads;
    for (const auto& [ids, types] :
         {std::pair{&step.inputs, &step.node.inputs}, std::pair{&step.outputs, &step.node.outputs}})
      for (const size_t id : *ids) {
        if (id >= spec.values.size())
          fail("plan: '", step.node.name, "' refers to value ", id, " of ", spec.values.size());
        types->push_back(spec.values[id].type);
      }
  }
  return spec;
}

Plan::Plan(PlanSpec given) : spec(checked(std::move(given))) {
  size_t shared = 0, scratch = 0;
  for (const PlanSpec::Step& step : spec.steps) {
    kernels.push_back(Register::find(step.node.op, spec.device).make(step.node, spec.device));
    shared = std::max(shared, kernels.back().sharedBytes);
    scratch = std::max(scratch, kernels.back().threadBytes);
  }
  Layout layout;
  layout.add(spec.arenaBytes);
  sharedAt = layout.add(shared);
  scratchStride = (scratch + 127) / 64 * 64;  // threads never share a cache line
  scratchAt = layout.add(scratchStride * static_cast<size_t>(spec.threads));
  runBytes_ = layout.size();
}

size_t Plan::boundaryBytes(PlanSpec::Place place, size_t i) const {
  for (const PlanSpec::Value& value : spec.values)
    if (value.place == place && value.at == i) return value.type.bytes();
  return 0;
}

bool Plan::run(Request& request, Gang& gang) {
  Memory block;
  {
    std::lock_guard lock(mutex);
    if (!idle.empty()) block = std::move(idle.back()), idle.pop_back();
  }
  if (block.size() == 0) block = Memory(runBytes_);

  const auto address = [&](size_t id) -> void* {
    const PlanSpec::Value& value = spec.values[id];
    switch (value.place) {
      case PlanSpec::Place::input:
        return request.inputs[value.at];
      case PlanSpec::Place::output:
        return request.outputs[value.at];
      default:
        return block.data() + value.at;
    }
  };
  Run run;
  run.gang = &gang;
  run.shared = block.data() + sharedAt;
  run.scratch = block.data() + scratchAt;
  run.scratchStride = scratchStride;
  using Clock = std::chrono::steady_clock;
  auto start = Clock::now();
  for (size_t i = 0; i < spec.steps.size(); i++) {
    if (request.cancelled->load(std::memory_order_relaxed)) break;
    run.inputs.clear(), run.outputs.clear();
    for (const size_t id : spec.steps[i].inputs) run.inputs.push_back(address(id));
    for (const size_t id : spec.steps[i].outputs) run.outputs.push_back(address(id));
    kernels[i].run(run);
    if (request.stepMilliseconds) {
      const auto now = Clock::now();
      request.stepMilliseconds[i] = std::chrono::duration<float, std::milli>(now - start).count();
      start = now;
    }
  }
  std::lock_guard lock(mutex);
  if (idle.size() < 4) idle.push_back(std::move(block));  // a burst of runs does not keep its memory
  return !request.cancelled->load(std::memory_order_relaxed);
}

}  // namespace octconv
