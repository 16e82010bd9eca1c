#include "program.h"

#include "../core/threads.h"

namespace octconv::cuda {
namespace {

constexpr size_t mostIdle = 4;  // a burst of runs does not keep its memory

}  // namespace

int64_t Program::placeOf(size_t id, int64_t round) const {
  const PlanSpec::Value& value = spec.values[id];
  const size_t first = value.place == PlanSpec::Place::input    ? inputsAt[value.at]
                       : value.place == PlanSpec::Place::output ? outputsAt[value.at]
                                                                : value.at;
  return static_cast<int64_t>(first + (value.rounds == 1 ? 0 : static_cast<size_t>(round) * value.type.stride()));
}

Program::Program(Gpu& gpu, const Kernels& (*find)(const std::string& op), PlanSpec given)
    : gpu(gpu), context(gpu.context()), spec(std::move(given)), infos(spec.steps.size()) {
  Layout arena, boundary;
  arena.add(spec.arenaBytes);
  for (const auto& [sizes, places] : {std::pair{&spec.inputBytes, &inputsAt}, std::pair{&spec.outputBytes, &outputsAt}})
    for (const size_t bytes : *sizes) places->push_back(arena.add(bytes)), boundary.add(bytes);
  boundaryBytes = boundary.size();
  const auto scratch = static_cast<int64_t>(arena.size());
  size_t scratchBytes = 0;

  size_t first = 0;
  for (const PlanSpec::Segment& segment : spec.segments) {
    for (int64_t round = 0; round < segment.rounds; round++)
      for (size_t i = first; i < first + segment.steps; i++) {
        const PlanSpec::Step& step = spec.steps[i];
        PlacedNode placed{step.node, scratch, {}, {}};
        for (const size_t id : step.inputs) placed.inputs.push_back(placeOf(id, round));
        for (const size_t id : step.outputs) placed.outputs.push_back(placeOf(id, round));
        Made made = find(step.node.op).make(placed);
        infos[i].algorithm = std::move(made.algorithm);
        scratchBytes = std::max(scratchBytes, made.scratchBytes);
        launched.push_back({i, {}});
        for (Launch& launch : made.launches)
          launched.back().launches.emplace_back(
              launch.call ? nullptr : context->function(launch.kernel, launch.sharedBytes), std::move(launch));
      }
    first += segment.steps;
  }
  arena.add(scratchBytes);
  arenaBytes = arena.size();
}

size_t Program::idleBytes() const {
  std::lock_guard lock(mutex);
  return idle.rooms.size() * arenaBytes + idle.boundaries.size() * boundaryBytes;
}

// The driver may wait for the GPU before it frees memory: that is no work for the caller's thread.
void Program::trim() {
  auto old = std::make_shared<Idle>();
  {
    std::lock_guard lock(mutex);
    std::swap(*old, idle);
  }
  threads::submit(
      1, [old = std::move(old)](Crew&) {}, threads::Kind::background);
}

// Called where runs end, on a thread of the library.
void Program::dropSurplus() {
  std::vector<Block> surplus;  // freed without the lock
  std::lock_guard lock(mutex);
  for (; idle.boundaries.size() > mostIdle; idle.boundaries.pop_back())
    surplus.push_back(std::move(idle.boundaries.back()));
}

// A run's inputs and outputs, in pinned memory.
struct Program::PinnedRequest : Request {
  std::shared_ptr<Program> program;
  Block memory;

  explicit PinnedRequest(std::shared_ptr<Program> owner) : program(std::move(owner)) {
    {
      std::lock_guard lock(program->mutex);
      auto& boundaries = program->idle.boundaries;
      if (!boundaries.empty()) {
        memory = std::move(boundaries.back());
        boundaries.pop_back();
      }
    }
    if (memory.size() == 0) memory = Block(program->context, program->boundaryBytes, Block::Where::pinned);
    Layout layout;
    const auto place = [&](const std::vector<size_t>& sizes, std::vector<std::span<std::byte>>& spans) {
      for (const size_t bytes : sizes)
        spans.emplace_back(reinterpret_cast<std::byte*>(memory.host() + layout.add(bytes)), bytes);
    };
    place(program->spec.inputBytes, inputs);
    place(program->spec.outputBytes, outputs);
  }
  ~PinnedRequest() override {
    std::lock_guard lock(program->mutex);
    program->idle.boundaries.push_back(std::move(memory));
  }
};

std::shared_ptr<Request> Program::prepare() {
  return std::make_shared<PinnedRequest>(std::static_pointer_cast<Program>(shared_from_this()));
}

class Program::Run : public Queue::Job {
 public:
  Run(std::shared_ptr<Program> program, std::shared_ptr<Request> request, std::function<void()> done)
      : program(std::move(program)), request(std::move(request)), done(std::move(done)) {}

  bool begin(bool alone) override {
    attempt([&] {
      if (request->stop || !takeRoom(alone)) return;
      const Context::Use use(*program->context);
      copy(request->inputs, program->inputsAt, true);
      if (!request->stepMilliseconds.empty()) mark();
      for (const Step& step : program->launched) {
        launch(step);
        if (!request->stepMilliseconds.empty()) mark();
      }
      copy(request->outputs, program->outputsAt, false);
      begun = true;
    });
    return room || alone || request->stop || !request->error.empty();
  }

  void finish() override {
    attempt([this] {
      if (!room) return;
      room->stream.wait();
      if (!begun) return;
      const Context::Use use(*program->context);
      readTimes();
      request->completed = !request->stop;
    });
    events.clear();
    if (room && request->error.empty()) giveRoom();
    room.reset();
    program->dropSurplus();
    request.reset();  // its memory is the caller's to keep or to give back
    done();
  }

 private:
  template <class Work>
  void attempt(Work&& work) {
    try {
      work();
    } catch (const std::exception& error) {
      if (request->error.empty()) request->error = error.what();
    }
  }
  void check(CUresult result, const std::string& what) const { driver.check(result, what); }

  // False if the GPU has no memory for it as long as others run.
  bool takeRoom(bool alone) {
    {
      std::lock_guard lock(program->mutex);
      auto& rooms = program->idle.rooms;
      if (!rooms.empty()) {
        room = std::move(rooms.back());
        rooms.pop_back();
        return true;
      }
    }
    const auto& context = program->context;
    try {
      room.reset(new Room{Block(context, program->arenaBytes, Block::Where::device), Stream(context)});
    } catch (const OutOfMemory&) {
      if (alone) throw;
    }
    return room != nullptr;
  }
  void giveRoom() {
    std::lock_guard lock(program->mutex);
    if (program->idle.rooms.size() < mostIdle) program->idle.rooms.push_back(std::move(room));
  }

  void copy(const std::vector<std::span<std::byte>>& host, const std::vector<size_t>& places, bool in) {
    for (size_t i = 0; i < host.size(); i++) {
      const CUdeviceptr device = room->arena.device() + places[i];
      check(in ? driver.cuMemcpyHtoDAsync_v2(device, host[i].data(), host[i].size(), room->stream)
               : driver.cuMemcpyDtoHAsync_v2(host[i].data(), device, host[i].size(), room->stream),
            in ? "cuda: copy of an input" : "cuda: copy of an output");
    }
  }

  void launch(const Step& step) {
    for (const auto& [function, launch] : step.launches) {
      CUdeviceptr arena = room->arena.device();
      if (launch.call) {
        launch.call(arena, room->stream);
        continue;
      }
      void* parameters[] = {const_cast<char*>(launch.arguments.data()), &arena};
      check(driver.cuLaunchKernel(function, launch.blocks, 1, 1, launch.threads, 1, 1,
                                  static_cast<unsigned>(launch.sharedBytes), room->stream, parameters, nullptr),
            program->spec.steps[step.index].node.op + " '" + program->spec.steps[step.index].node.name +
                "': launch of " + launch.kernel);
    }
  }

  void mark() {
    events.emplace_back(program->context);
    check(driver.cuEventRecord(events.back(), room->stream), "cuda: an event");
  }
  void readTimes() {
    for (size_t i = 1; i < events.size(); i++) {
      float milliseconds = 0;
      check(driver.cuEventElapsedTime(&milliseconds, events[i - 1], events[i]), "cuda: time of a step");
      request->stepMilliseconds[program->launched[i - 1].index] += milliseconds;
    }
  }

  const Driver& driver = Driver::get();
  const std::shared_ptr<Program> program;
  std::shared_ptr<Request> request;
  const std::function<void()> done;
  std::unique_ptr<Room> room;
  std::deque<Event> events;
  bool begun = false;
};

void Program::start(std::shared_ptr<Request> request, std::function<void()> done) {
  gpu.queue.add(std::make_unique<Run>(std::static_pointer_cast<Program>(shared_from_this()), std::move(request),
                                      std::move(done)));
}

}  // namespace octconv::cuda
