#include "program.h"

#include <cstring>

#include "../core/memory.h"
#include "../core/threads.h"
#include "pads.h"

namespace octconv::cuda {
namespace {

constexpr size_t mostIdle = 4;  // of a burst of runs the others' memory goes, pinned memory when a later run ends

Made makeOf(const Kernels& kernels, const PlacedNode& placed) {
  const Node& node = placed.node;
  try {
    return kernels.make(placed);
  } catch (const TooLarge& error) { fail(node.op, " '", node.name, "': ", error.what()); }
}

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
  if (!spec.observed.empty()) fail("plan: values are observed in host memory, on cpu and reference only");
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
        PlacedNode placed{step.node, gpu, scratch, {}, {}};
        for (const size_t id : step.inputs) placed.inputs.push_back(placeOf(id, round));
        for (const size_t id : step.outputs) placed.outputs.push_back(placeOf(id, round));
        Made made = makeOf(find(step.node.op), placed);
        if (!made.writesPads)
          for (size_t k = 0; k < placed.outputs.size(); k++)
            if (const TensorType& type = step.node.outputs[k]; type.pad > 0)
              made.launches.insert(made.launches.begin(), clearPads(type, placed.outputs[k]));
        infos[i].algorithm = std::move(made.algorithm);
        infos[i].scratchBytes += made.scratchBytes;
        scratchBytes = std::max(scratchBytes, made.scratchBytes);
        infos[i].launches.insert(infos[i].launches.end(), made.launches.begin(), made.launches.end());
        launched.push_back({i, {}});
        for (Launch& launch : made.launches) {
          const bool hasFunction = context && !launch.call;
          launched.back().launches.emplace_back(
              hasFunction ? context->function(launch.kernel, launch.sharedBytes) : nullptr, std::move(launch));
        }
      }
    first += segment.steps;
  }
  arena.add(scratchBytes);
  arenaBytes = arena.size();
  if (context) context->add(*this);
}
Program::~Program() {
  if (context) context->remove(*this);
}

size_t Program::idleBytes() const {
  std::lock_guard lock(mutex);
  size_t bytes = idle.rooms.size() * arenaBytes + idle.boundaries.size() * boundaryBytes;
  for (const Block& output : idle.outputs) bytes += output.size();
  return bytes;
}

// The driver may wait for the GPU before it frees memory: that is no work for the caller's thread.
void Program::trim() { threads::letGo(std::make_shared<Idle>(takeIdle())); }
void Program::dropIdle() { takeIdle(); }
Program::Idle Program::takeIdle() {
  std::lock_guard lock(mutex);
  return std::exchange(idle, {});
}

// Called where runs end, on a thread of the library: to free pinned memory takes milliseconds.
void Program::dropSurplus() {
  std::vector<Block> surplus;  // freed without the lock
  std::lock_guard lock(mutex);
  for (; idle.boundaries.size() > mostIdle; idle.boundaries.pop_back())
    surplus.push_back(std::move(idle.boundaries.back()));
}

// A run's inputs and outputs: in pinned memory, or on the GPU.
struct Program::Boundary : Request {
  std::shared_ptr<Program> program;
  Block pinned;
  Memory pageable;  // where the caller writes inputs if no pinned memory is idle: pin() copies them once more
  Buffers given;    // inputs that are on the GPU, null for others; none where all is in memory of the host

  explicit Boundary(std::shared_ptr<Program> owner, Buffers onGpu = {})
      : program(std::move(owner)), given(std::move(onGpu)) {
    inputs.resize(program->spec.inputBytes.size());
    outputs.resize(program->spec.outputBytes.size());
    if (!given.empty() && std::find(given.begin(), given.end(), nullptr) == given.end()) return;
    pinned = idlePinned();
    if (pinned.size() == 0) pageable = Memory(program->boundaryBytes);
    place(pinned.size() > 0 ? pinned.host() : pageable.data());
  }
  ~Boundary() override {
    if (pinned.size() == 0) return;
    std::lock_guard lock(program->mutex);
    program->idle.boundaries.push_back(std::move(pinned));
  }

  // Called where the run begins, on a thread of the library: to allocate pinned memory takes milliseconds.
  void pin() {
    if (pageable.size() == 0) return;
    pinned = idlePinned();
    if (pinned.size() == 0) pinned = Block(program->context, program->boundaryBytes, Block::Where::pinned);
    const auto written = inputs;
    place(pinned.host());
    for (size_t i = 0; i < inputs.size(); i++)
      if (given.empty() || !given[i]) std::memcpy(inputs[i].data(), written[i].data(), written[i].size());
    pageable = {};
  }
  // Called where the run has ended, on a thread of the library: cuMemFree waits for the GPU.
  void releaseInputs() {
    given.clear(), pageable = {};
    if (!completed) kept.clear();
  }

 private:
  Block idlePinned() {
    std::lock_guard lock(program->mutex);
    auto& boundaries = program->idle.boundaries;
    if (boundaries.empty()) return {};
    Block block = std::move(boundaries.back());
    boundaries.pop_back();
    return block;
  }
  void place(char* at) {
    Layout layout;
    const auto each = [&](const std::vector<size_t>& sizes, std::vector<std::span<std::byte>>& spans) {
      for (size_t i = 0; i < sizes.size(); i++)
        spans[i] = {reinterpret_cast<std::byte*>(at + layout.add(sizes[i])), sizes[i]};
    };
    each(program->spec.inputBytes, inputs);
    if (given.empty()) each(program->spec.outputBytes, outputs);
  }
};

// An output that stays on the GPU. A later run of its plan gets the memory.
struct Program::Output : Resident {
  std::weak_ptr<Program> plan;  // with its weights it is not kept by this

  Output(Block block, std::weak_ptr<Program> plan) : Resident(std::move(block)), plan(std::move(plan)) {}
  ~Output() override {
    const auto program = plan.lock();
    if (!program) return;
    std::lock_guard lock(program->mutex);
    auto& outputs = program->idle.outputs;
    if (outputs.size() < mostIdle * program->outputsAt.size()) outputs.push_back(std::move(block));
  }
};

std::shared_ptr<Request> Program::prepare() {
  gpu.checkPresent();
  return std::make_shared<Boundary>(std::static_pointer_cast<Program>(shared_from_this()));
}

std::shared_ptr<Request> Program::prepareOnDevice(Buffers inputs) {
  if (inputs.size() != inputsAt.size()) fail("plan: ", inputs.size(), " inputs, wanted ", inputsAt.size());
  for (size_t i = 0; i < inputs.size(); i++) {
    if (!inputs[i]) continue;
    const auto* resident = dynamic_cast<const Resident*>(inputs[i].get());
    if (!resident || resident->block.owner() != context) fail("plan: input ", i, " is on another device");
    if (resident->bytes() != spec.inputBytes[i])
      fail("plan: input ", i, " has ", resident->bytes(), " bytes, wanted ", spec.inputBytes[i]);
  }
  return std::make_shared<Boundary>(std::static_pointer_cast<Program>(shared_from_this()), std::move(inputs));
}

class Program::Run : public Queue::Job {
 public:
  Run(std::shared_ptr<Program> program, std::shared_ptr<Request> request, std::function<void()> done)
      : program(std::move(program)),
        request(std::static_pointer_cast<Boundary>(std::move(request))),
        done(std::move(done)) {}

  bool begin(bool alone) override {
    attempt([&] {
      if (request->stop || !takeMemory(alone)) return;
      const Context::Use use(*program->context);
      for (size_t i = 0; i < program->inputsAt.size(); i++) copyInput(i);
      compute();
      for (size_t i = 0; i < program->outputsAt.size(); i++) copyOutput(i);
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
    request->releaseInputs();
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

  // False if there is no memory for it as long as others run.
  bool takeMemory(bool alone) {
    try {
      request->pin();
      takeRoom();
      if (!request->given.empty()) takeOutputs();
    } catch (const OutOfMemory&) {
      if (alone) throw;
      request->kept.clear();
      if (room) giveRoom();
      room.reset();
    }
    return room != nullptr;
  }
  void takeRoom() {
    {
      std::lock_guard lock(program->mutex);
      auto& rooms = program->idle.rooms;
      if (!rooms.empty()) {
        room = std::move(rooms.back());
        rooms.pop_back();
        wasUsed = true;
        return;
      }
    }
    const auto& context = program->context;
    room.reset(new Room{Block(context, program->arenaBytes, Block::Where::device), Stream(context)});
    wasUsed = false;
  }
  void takeOutputs() {
    for (const size_t bytes : program->spec.outputBytes) {
      Block block = idleOutput(bytes);
      if (block.size() == 0) block = Block(program->context, bytes, Block::Where::device);
      request->kept.push_back(std::make_shared<Output>(std::move(block), program));
    }
  }
  Block idleOutput(size_t bytes) {
    std::lock_guard lock(program->mutex);
    auto& outputs = program->idle.outputs;
    const auto found =
        std::find_if(outputs.begin(), outputs.end(), [&](const Block& block) { return block.size() == bytes; });
    if (found == outputs.end()) return {};
    Block block = std::move(*found);
    outputs.erase(found);
    return block;
  }
  void giveRoom() {
    std::lock_guard lock(program->mutex);
    if (program->idle.rooms.size() < mostIdle) program->idle.rooms.push_back(std::move(room));
  }

  void copyInput(size_t i) {
    const CUdeviceptr to = room->arena.device() + program->inputsAt[i];
    const std::span<std::byte> host = request->inputs[i];
    const Buffer* given = request->given.empty() ? nullptr : request->given[i].get();
    check(given ? driver.cuMemcpyDtoDAsync_v2(to, static_cast<const Resident*>(given)->block.device(), given->bytes(),
                                              room->stream)
                : driver.cuMemcpyHtoDAsync_v2(to, host.data(), host.size(), room->stream),
          "cuda: copy of an input");
  }
  void copyOutput(size_t i) {
    const CUdeviceptr from = room->arena.device() + program->outputsAt[i];
    const std::span<std::byte> host = request->outputs[i];
    const Buffer* kept = request->kept.empty() ? nullptr : request->kept[i].get();
    check(kept ? driver.cuMemcpyDtoDAsync_v2(static_cast<const Resident*>(kept)->block.device(), from, kept->bytes(),
                                             room->stream)
               : driver.cuMemcpyDtoHAsync_v2(host.data(), from, host.size(), room->stream),
          "cuda: copy of an output");
  }

  // The first run in a room is launched step by step: a plan that runs once needs no graph, and the driver loads
  // kernels at their first launch, which a capture may forbid.
  void compute() {
    const bool each = request->stepMilliseconds.size() > 1, together = request->stepMilliseconds.size() == 1;
    const bool replay = wasUsed && !each && program->spec.cudaGraphs;
    auto& graph = room->graph;
    if (replay && !graph && program->capturable) capture();
    if (together) mark();
    if (replay && graph) {
      check(driver.cuGraphLaunch(*graph, room->stream), "cuda: launch of a graph");
    } else {
      launchAll(each);
    }
    if (together) mark();
  }
  void capture() {
    try {
      room->graph = std::make_unique<Graph>(program->context, room->stream, [this] { launchAll(false); });
    } catch (const NotCaptured&) { program->capturable = false; }
  }
  void launchAll(bool timed) {
    if (timed) mark();
    for (const Step& step : program->launched) {
      launch(step);
      if (timed) mark();
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
      request->stepMilliseconds[events.size() > 2 ? program->launched[i - 1].index : 0] += milliseconds;
    }
  }

  const Driver& driver = Driver::get();
  const std::shared_ptr<Program> program;
  std::shared_ptr<Boundary> request;
  const std::function<void()> done;
  std::unique_ptr<Room> room;
  bool wasUsed = false;  // the room, by a run before
  std::deque<Event> events;
  bool begun = false;
};

void Program::start(std::shared_ptr<Request> request, std::function<void()> done) {
  gpu.queue.add(std::make_unique<Run>(std::static_pointer_cast<Program>(shared_from_this()), std::move(request),
                                      std::move(done)));
}

}  // namespace octconv::cuda
