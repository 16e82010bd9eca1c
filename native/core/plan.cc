#include "plan.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "device.h"
#include "registry.h"

namespace octconv {

static void placeValues(PlanSpec& spec) {
  std::set<std::tuple<PlanSpec::Place, size_t, int64_t>> taken;
  for (const PlanSpec::Value& value : spec.values) {
    if (value.bytes() > static_cast<size_t>(mostBytes))
      fail("plan: a value ", value.type.shape, " of ", value.rounds, " rounds takes more than ", mostBytes, " bytes");
    if (value.place == PlanSpec::Place::arena) {
      if (value.at > spec.arenaBytes || value.bytes() > spec.arenaBytes - value.at)
        fail("plan: a value ", value.type.shape, " at ", value.at, " does not fit into ", spec.arenaBytes, " bytes");
      if (value.at % bytesOf(value.type.dtype)) fail("plan: a value at ", value.at, " is not aligned for its type");
      continue;
    }
    if (value.type.gap)
      fail("plan: a value ", value.type.shape, " of pitch ", value.type.pitch(), " outside of the arena");
    auto& sizes = value.place == PlanSpec::Place::input ? spec.inputBytes : spec.outputBytes;
    const char* side = value.place == PlanSpec::Place::input ? "input " : "output ";
    if (value.at >= spec.values.size()) fail("plan: ", side, value.at, " of ", spec.values.size(), " values");
    if (value.at >= sizes.size()) sizes.resize(value.at + 1, 0);
    // A batch and its sub-batches are views of one place, each with rounds of its own.
    if (sizes[value.at] != 0 && sizes[value.at] != value.bytes())
      fail("plan: ", side, value.at, " is of ", sizes[value.at], " and of ", value.bytes(), " bytes");
    sizes[value.at] = value.bytes();
    if (!taken.emplace(value.place, value.at, value.rounds).second) fail("plan: two values are ", side, value.at);
  }
  for (const auto& [side, sizes] : {std::pair{"input ", &spec.inputBytes}, std::pair{"output ", &spec.outputBytes}})
    for (size_t i = 0; i < sizes->size(); i++)
      if ((*sizes)[i] == 0) fail("plan: no value is ", side, i);
}

static void typeNodes(PlanSpec& spec) {
  for (PlanSpec::Step& step : spec.steps)
    for (const auto& [ids, types] :
         {std::pair{&step.inputs, &step.node.inputs}, std::pair{&step.outputs, &step.node.outputs}})
      for (const size_t id : *ids) {
        if (id >= spec.values.size())
          fail("plan: '", step.node.name, "' refers to value ", id, " of ", spec.values.size());
        types->push_back(spec.values[id].type);
      }
}

static void checkSegments(PlanSpec& spec) {
  if (spec.segments.empty()) spec.segments.push_back({spec.steps.size(), 1});
  size_t first = 0;
  for (const PlanSpec::Segment& segment : spec.segments) {
    if (segment.steps > spec.steps.size() - first || segment.rounds < 1) fail("plan: segments must cover all steps");
    for (size_t i = first; i < first + segment.steps; i++)
      for (const auto* ids : {&spec.steps[i].inputs, &spec.steps[i].outputs})
        for (const size_t id : *ids)
          if (spec.values[id].rounds != 1 && spec.values[id].rounds != segment.rounds)
            fail("plan: a value of ", spec.values[id].rounds, " rounds in a segment of ", segment.rounds);
    first += segment.steps;
  }
  if (first != spec.steps.size()) fail("plan: segments must cover all steps");
}

static void checkObserved(const PlanSpec& spec) {
  std::set<size_t> written, known;
  for (const PlanSpec::Step& step : spec.steps) written.insert(step.outputs.begin(), step.outputs.end());
  for (const size_t id : spec.observed) {
    if (id >= spec.values.size()) fail("plan: observed value ", id, " of ", spec.values.size());
    const PlanSpec::Value& value = spec.values[id];
    const bool whole = value.place == PlanSpec::Place::input && value.rounds == 1;
    if (!whole && !written.count(id)) fail("plan: observed value ", id, " is no whole input, and no step writes it");
    if (value.type.dtype != DType::f32 || value.type.gap)
      fail("plan: observed value ", id, " is ", nameOf(value.type.dtype), " ", value.type.shape, " of pitch ",
           value.type.pitch(), ", wanted f32 without gaps");
    if (!known.insert(id).second) fail("plan: value ", id, " is observed twice");
  }
}

static void checkNode(const Node& node, const std::string& device, const Traits& traits) {
  const Contract* contract = Registered<Contract>::find(node.op);
  if (!contract) fail(node.op, ": there is no such op");
  const auto found = traits.ops.find(node.op);
  if (found == traits.ops.end()) fail(node.op, ": no kernel on ", device);
  const auto& [dtypes, pitched] = found->second;
  const auto check = [&, &dtypes = dtypes, pitched = pitched](const std::vector<TensorType>& types, bool typed,
                                                              const char* what) {
    for (const TensorType& type : types) {
      if (type.gap && !pitched)
        fail(node.op, ": no kernel for pixels ", type.pitch(), " elements apart on ", device, ", as in '", node.name,
             "', wanted ", type.shape.c);
      if (typed && std::find(dtypes.begin(), dtypes.end(), type.dtype) == dtypes.end())
        fail(node.op, ": no kernel for ", nameOf(type.dtype), " on ", device, ", which '", node.name, "' ", what);
    }
  };
  check(node.inputs, true, "reads");
  check(node.outputs, contract->mixesTypes, "writes");
  contract->check(node);
  if (contract->keepsType) node.wantOneType();
}

void complete(PlanSpec& spec, const std::string& device, const Traits& traits) {
  placeValues(spec);
  typeNodes(spec);
  checkSegments(spec);
  checkObserved(spec);
  for (const PlanSpec::Step& step : spec.steps) checkNode(step.node, device, traits);
}

}  // namespace octconv
