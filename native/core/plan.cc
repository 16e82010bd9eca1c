#include "plan.h"

#include <algorithm>
#include <chrono>

namespace octconv {

void Run::parallel(int64_t tasks, Body body) {
  gang->parallel(tasks,
                 [&](int64_t task, int slot) { body(task, scratch + static_cast<size_t>(slot) * scratchStride); });
}

static PlanSpec checked(PlanSpec spec) {
  if (spec.threads < 1 || spec.threads > 1024) fail("plan: threads must be 1 to 1024, got ", spec.threads);
  for (const PlanSpec::Value& value : spec.values) {
    const size_t limit = value.place == PlanSpec::Place::arena   ? spec.arenaBytes
                         : value.place == PlanSpec::Place::input ? spec.inputs
                                                                 : spec.outputs;
    const size_t need =
        value.place == PlanSpec::Place::arena ? value.type.bytes() * static_cast<size_t>(value.rounds) : 1;
    if (value.at > limit || need > limit - value.at)
      fail("plan: a value ", value.type.shape, " at ", value.at, " does not fit into ", limit);
  }
  if (spec.segments.empty()) spec.segments.push_back({spec.steps.size(), 1});
  size_t first = 0;
  for (const PlanSpec::Segment& segment : spec.segments) {
    if (segment.steps > spec.steps.size() - first || segment.rounds < 1) fail("plan: segments must cover all steps");
    for (size_t i = first; i < first + segment.steps; i++)
      for (const auto* ids : {&spec.steps[i].inputs, &spec.steps[i].outputs})
        for (const size_t id : *ids)
          if (id < spec.values.size() && spec.values[id].rounds != 1 && spec.values[id].rounds != segment.rounds)
            fail("plan: a value of ", spec.values[id].rounds, " rounds in a segment of ", segment.rounds);
    first += segment.steps;
  }
  if (first != spec.steps.size()) fail("plan: segments must cover all steps");
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
    if (value.place == place && value.at == i) return value.type.bytes() * static_cast<size_t>(value.rounds);
  return 0;
}

bool Plan::run(Request& request, Gang& gang) {
  Room room;
  {
    std::lock_guard lock(mutex);
    if (!idle.empty()) room = std::move(idle.back()), idle.pop_back();
  }
  if (room.block.size() == 0) room.block = Memory(runBytes_);
  const Memory& block = room.block;

  const auto address = [&](size_t id, int64_t round) -> void* {
    const PlanSpec::Value& value = spec.values[id];
    char* const first = value.place == PlanSpec::Place::input    ? static_cast<char*>(request.inputs[value.at])
                        : value.place == PlanSpec::Place::output ? static_cast<char*>(request.outputs[value.at])
                                                                 : block.data() + value.at;
    return value.rounds == 1 ? first : first + static_cast<size_t>(round) * value.type.bytes();
  };
  Run& run = room.run;
  run.gang = &gang;
  gang.stop = request.cancelled.get();
  run.shared = block.data() + sharedAt;
  run.scratch = block.data() + scratchAt;
  run.scratchStride = scratchStride;
  using Clock = std::chrono::steady_clock;
  auto start = Clock::now();
  const auto go = [&](size_t i, int64_t round) {
    run.inputs.clear(), run.outputs.clear();
    for (const size_t id : spec.steps[i].inputs) run.inputs.push_back(address(id, round));
    for (const size_t id : spec.steps[i].outputs) run.outputs.push_back(address(id, round));
    kernels[i].run(run);
    if (!request.stepMilliseconds) return;
    const auto now = Clock::now();
    request.stepMilliseconds[i] += std::chrono::duration<float, std::milli>(now - start).count();
    start = now;
  };
  const auto cancelled = [&] { return request.cancelled->load(std::memory_order_relaxed); };
  if (request.stepMilliseconds) std::fill_n(request.stepMilliseconds, spec.steps.size(), 0.f);
  size_t first = 0;
  for (const PlanSpec::Segment& segment : spec.segments) {
    for (int64_t round = 0; round < segment.rounds && !cancelled(); round++)
      for (size_t i = first; i < first + segment.steps && !cancelled(); i++) go(i, round);
    first += segment.steps;
  }
  std::lock_guard lock(mutex);
  if (idle.size() < 4) idle.push_back(std::move(room));  // a burst of runs does not keep its memory
  return !cancelled();
}

}  // namespace octconv
