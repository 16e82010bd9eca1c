#include "program.h"

#include <chrono>

#include "../core/threads.h"

namespace octconv {

void Run::parallel(int64_t tasks, int64_t adjacent, Body body) {
  crew->parallel(tasks, adjacent,
                 [&](int64_t task, int slot) { body(task, scratch + static_cast<size_t>(slot) * scratchStride); });
}

// Before a kernel writes the channels: it leaves what lies between them. Column by column, since a pixel has few.
static void clearPads(Crew& crew, const TensorType& type, char* first) {
  if (type.pad == 0) return;
  const auto size = static_cast<int64_t>(bytesOf(type.dtype));
  const int64_t pixels = type.shape.pixels(), pitch = type.pitch() * size, begin = type.shape.c * size,
                parts = pieces(pixels, 1 << 11);
  crew.parallel(parts, [&](int64_t task, int) {
    const auto [from, to] = piece(pixels, parts, task);
    for (int64_t i = begin; i < begin + type.pad * size; i++)
      for (int64_t p = from; p < to; p++) first[p * pitch + i] = 0;
  });
}

HostProgram::HostProgram(PlanSpec given, std::vector<Kernel> made) : spec(std::move(given)), kernels(std::move(made)) {
  size_t shared = 0, scratch = 0;
  for (const Kernel& kernel : kernels) {
    shared = std::max(shared, kernel.sharedBytes);
    scratch = std::max(scratch, kernel.threadBytes);
    infos.push_back({kernel.algorithm});
  }
  Layout layout;
  layout.add(spec.arenaBytes);
  sharedAt = layout.add(shared);
  scratchStride = static_cast<size_t>(sum(scratch, 127)) / 64 * 64;  // threads never share a cache line
  scratchAt = layout.add(static_cast<size_t>(product(scratchStride, spec.threads)));
  runBytes_ = layout.size();
  for (const auto* sizes : {&spec.inputBytes, &spec.outputBytes})
    for (const size_t bytes : *sizes) boundary.add(bytes);
  histogramOf.resize(spec.values.size(), spec.observed.size());
  for (size_t i = 0; i < spec.observed.size(); i++) histogramOf[spec.observed[i]] = i;
  for (const size_t bytes : {runBytes_, boundary.size()})
    if (bytes > static_cast<size_t>(mostBytes)) fail("plan: a run takes ", bytes, " bytes, wanted at most ", mostBytes);
}

struct HostProgram::HostRequest : Request {
  std::shared_ptr<HostProgram> program;
  Memory memory;

  explicit HostRequest(std::shared_ptr<HostProgram> owner) : program(std::move(owner)) {
    memory = program->boundaries.take();
    if (memory.size() == 0) memory = Memory(program->boundary.size());
    Layout layout;
    const auto place = [&](const std::vector<size_t>& sizes, std::vector<std::span<std::byte>>& spans) {
      for (const size_t bytes : sizes)
        spans.emplace_back(reinterpret_cast<std::byte*>(memory.data() + layout.add(bytes)), bytes);
    };
    place(program->spec.inputBytes, inputs);
    place(program->spec.outputBytes, outputs);
    histograms.resize(program->spec.observed.size());
  }
  ~HostRequest() override { program->boundaries.give(std::move(memory)); }
};

std::shared_ptr<Request> HostProgram::prepare() {
  return std::make_shared<HostRequest>(std::static_pointer_cast<HostProgram>(shared_from_this()));
}

void HostProgram::start(std::shared_ptr<Request> request, std::function<void()> done) {
  threads::submit(spec.threads, [this, request = std::move(request), done = std::move(done)](Crew& crew) mutable {
    try {
      go(*request, crew);
    } catch (const std::exception& error) { request->error = error.what(); }
    request.reset();  // its memory is the caller's to keep or to give back
    done();
  });
}

void HostProgram::go(Request& request, Crew& crew) {
  crew.stop = &request.stop;
  if (crew.stopped()) return;
  Room room = rooms.take();
  if (room.block.size() == 0) room.block = Memory(runBytes_);
  char* const arena = room.block.data();
  const auto address = [&](size_t id, int64_t round) -> void* {
    const PlanSpec::Value& value = spec.values[id];
    char* const first = value.place == PlanSpec::Place::input ? reinterpret_cast<char*>(request.inputs[value.at].data())
                        : value.place == PlanSpec::Place::output
                            ? reinterpret_cast<char*>(request.outputs[value.at].data())
                            : arena + value.at;
    return value.rounds == 1 ? first : first + static_cast<size_t>(round) * value.type.stride();
  };
  const auto observe = [&](size_t id, const void* data) {
    if (histogramOf[id] == spec.observed.size()) return;
    const auto elements = static_cast<size_t>(spec.values[id].type.shape.elements());
    request.histograms[histogramOf[id]].add({static_cast<const float*>(data), elements}, crew);
  };
  for (const size_t id : spec.observed)
    if (spec.values[id].place == PlanSpec::Place::input) observe(id, address(id, 0));
  Run& run = room.run;
  run.crew = &crew;
  run.shared = arena + sharedAt;
  run.scratch = arena + scratchAt;
  run.scratchStride = scratchStride;
  using Clock = std::chrono::steady_clock;
  auto start = Clock::now();
  const auto runStep = [&](size_t i, int64_t round) {
    run.inputs.clear(), run.outputs.clear();
    for (const size_t id : spec.steps[i].inputs) run.inputs.push_back(address(id, round));
    for (const size_t id : spec.steps[i].outputs) {
      run.outputs.push_back(address(id, round));
      clearPads(crew, spec.values[id].type, static_cast<char*>(run.outputs.back()));
    }
    kernels[i].run(run);
    for (size_t k = 0; k < run.outputs.size(); k++) observe(spec.steps[i].outputs[k], run.outputs[k]);
    if (request.stepMilliseconds.empty()) return;
    const auto now = Clock::now();
    request.stepMilliseconds[request.stepMilliseconds.size() > 1 ? i : 0] +=
        std::chrono::duration<float, std::milli>(now - start).count();
    start = now;
  };
  const auto stopped = [&] { return crew.stopped(); };
  size_t first = 0;
  for (const PlanSpec::Segment& segment : spec.segments) {
    for (int64_t round = 0; round < segment.rounds && !stopped(); round++)
      for (size_t i = first; i < first + segment.steps && !stopped(); i++) runStep(i, round);
    first += segment.steps;
  }
  request.completed = !stopped();
  rooms.give(std::move(room));
}

}  // namespace octconv
