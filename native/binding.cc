// The language boundary, and the only file that includes napi.h: convert, call, return.
//
//   kinds                              names of the kinds of devices
//   traits(device)                     -> its traits
//   devices()                          -> [{ name, traits } or { name, why }]: all devices of each kind, or why it has
//                                      none
//   block(bytes)                       -> ArrayBuffer of memory that pack() reads without a copy, until its promise is
//                                      settled
//   format(device, op, attrs)          -> string; parameters packed for one node serve all of the same format
//   pack(device, op, attrs, params)    -> Promise<packed parameters>
//   part(plan, before?)                -> a plan as native data; lists of its values and steps go on from those before
//   compile(device, plan | part)       -> Promise<{ plan, runBytes, steps }>: algorithm, launches, scratchBytes of each
//   run(plan, inputs, times)           -> { done: Promise<{ completed, outputs, stepMilliseconds, histograms }>,
//                                      cancel() };
//                                      outputs stay on the device if an input is there; times: as many as the plan has
//                                      steps, one for all of them, or 0
//   toDevice(device, data)             -> Promise<buffer>, in memory of the device
//   toHost(buffer)                     -> Promise<ArrayBuffer>
//   bytes(packed | plan)               -> bytes of packed parameters, or what a plan keeps for its next runs
//   tell(list of packed)               tells the garbage collector of packed parameters
//   trim(plan)                         gives back what it keeps for its next runs
//   release(packed | plan | buffer | block)  gives its memory back before the garbage collector does
//   sensors(device)                    -> what it tells of its state: { name: number }
//   giveWay()                          threads of runs are nicer than others from now on
//   peak(threads)                      -> Promise of measured GFLOP/s of fused multiply-adds
//   mostThreads                        of a plan or a measurement
//
// Native code owns what its threads read: parameters outside of blocks and inputs are copied in the call itself, so
// that JavaScript may change, transfer or shrink its buffers at any time; outputs are copied into new ones. All else
// that is given is converted to plain structs first, with every number checked.
#include <napi.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_set>

#include "core/device.h"
#include "core/memory.h"
#include "core/registry.h"
#include "core/sizes.h"
#include "core/threads.h"
#include "cpu/peak.h"

namespace octconv {
namespace {

// Work on other threads that settles a promise.
struct Job {
  virtual ~Job() = default;
  virtual Napi::Value result(Napi::Env env) = 0;  // on the JavaScript thread, when it has ended well
  virtual void stop() {}
  napi_deferred promise = nullptr;
  std::string error;
};

// What belongs to one environment (the main thread or a worker_threads worker).
class Environment {
 public:
  static void finish(Napi::Env env, Napi::Function, Environment* self, Job* job);
  using Channel = Napi::TypedThreadSafeFunction<Environment, Job, finish>;

  explicit Environment(Napi::Env env) : channel(Channel::New(env, "octconv", 0, 1, this)) {
    threads::retain();
    channel.Unref(env);
    // Hooks run last in, first out: this one, before the channel's own.
    napi_add_env_cleanup_hook(
        env, [](void* self) { static_cast<Environment*>(self)->shutDown(); }, this);
  }

  // Begins a job: `work` sees to it that report() is called once. The promise of the job's result.
  template <class Work>
  Napi::Value begin(Napi::Env env, std::unique_ptr<Job> job, Work&& work) {
    napi_value promise = nullptr;
    if (napi_create_promise(env, &job->promise, &promise) != napi_ok) fail("octconv: no promise could be made");
    Job* raw = job.release();
    start(env, raw);
    try {
      work(raw);
    } catch (const std::exception& error) {  // no thread could be started
      raw->error = error.what();
      report(raw);
    }
    return {env, promise};
  }
  // The same for a function that takes long.
  template <class Function>
  Napi::Value inBackground(Napi::Env env, std::unique_ptr<Job> job, int count, Function&& function) {
    return begin(env, std::move(job), [&](Job* job) {
      threads::submit(
          count,
          [this, job, function = std::forward<Function>(function)](Crew& crew) {
            try {
              function(crew);
            } catch (const std::exception& error) { job->error = error.what(); }
            report(job);
          },
          threads::Kind::background);
    });
  }
  // Memory that JavaScript fills, and finds again by an address in it.
  std::shared_ptr<const Memory> block(size_t bytes) {
    std::erase_if(blocks, [](const auto& each) { return each.second.expired(); });
    auto memory = std::make_shared<const Memory>(bytes);
    blocks[memory->data()] = memory;
    return memory;
  }
  std::shared_ptr<const Memory> blockOf(const void* address) const {
    auto after = blocks.upper_bound(static_cast<const char*>(address));
    auto memory = after == blocks.begin() ? nullptr : std::prev(after)->second.lock();
    const bool inside = memory && static_cast<const char*>(address) < memory->data() + memory->size();
    return inside ? memory : nullptr;
  }
  // Called by any thread; the environment may be gone right after it.
  void report(Job* job) {
    std::lock_guard lock(mutex);
    channel.NonBlockingCall(job);
    if (--inFlight == 0) drained.notify_all();
  }

 private:
  void start(Napi::Env env, Job* job) {
    if (running.empty()) channel.Ref(env);  // a job in flight keeps the process alive
    std::lock_guard lock(mutex);
    running.insert(job);
    inFlight++;
  }
  void ended(Napi::Env env, Job* job) {
    std::lock_guard lock(mutex);
    running.erase(job);
    if (running.empty()) channel.Unref(env);
  }
  void shutDown();

  Channel channel;
  std::mutex mutex;
  std::condition_variable drained;
  std::unordered_set<Job*> running;                           // until their promise is settled
  std::map<const char*, std::weak_ptr<const Memory>> blocks;  // by their first byte
  int64_t inFlight = 0;                                       // on other threads
};

// In a worker that is being terminated every call fails, and none may throw.
void Environment::finish(Napi::Env env, Napi::Function, Environment* self, Job* raw) {
  const std::unique_ptr<Job> job(raw);
  if (env == nullptr) return;  // the environment is being torn down
  self->ended(env, raw);
  if (job->error.empty()) {
    try {
      napi_resolve_deferred(env, job->promise, job->result(env));
      return;
    } catch (const std::exception& error) { job->error = error.what(); }
  }
  napi_value text = nullptr, value = nullptr;
  napi_create_string_utf8(env, job->error.data(), job->error.size(), &text);
  napi_create_error(env, nullptr, text, &value);
  napi_reject_deferred(env, job->promise, value);
}

void Environment::shutDown() {
  {
    std::unique_lock lock(mutex);
    for (Job* job : running) job->stop();
    drained.wait(lock, [this] { return inFlight == 0; });
  }
  if (threads::release()) Device::closeAll();
}

// --- JavaScript to plain structs --------------------------------------------------------------------------------

int64_t integerOf(const Napi::Value& value, const char* what, int64_t least, int64_t largest) {
  const double x = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (!(x >= static_cast<double>(least) && x <= static_cast<double>(largest)) || x != std::trunc(x))
    fail(what, " must be an integer from ", least, " to ", largest);
  return static_cast<int64_t>(x);
}

std::string textOf(const Napi::Value& value, const char* what) {
  if (!value.IsString()) fail(what, " must be a string");
  return value.As<Napi::String>();
}

Napi::Array arrayOf(const Napi::Value& value, const char* what) {
  if (!value.IsArray()) fail(what, " must be an array");
  return value.As<Napi::Array>();
}

Napi::Object objectOf(const Napi::Value& value, const char* what) {
  if (!value.IsObject()) fail(what, " must be an object");
  return value.As<Napi::Object>();
}

constexpr DType dtypes[] = {DType::f32, DType::f16, DType::bf16, DType::i8, DType::u8, DType::i32};

DType dtypeOf(const Napi::Value& value) {
  const std::string name = textOf(value, "dtype");
  for (const DType dtype : dtypes)
    if (name == nameOf(dtype)) return dtype;
  fail("dtype '", name, "' is unknown");
}

Attr attrOf(const Napi::Value& value, int depth = 0) {
  if (depth > 16) fail("attributes are nested too deeply");
  if (value.IsNumber()) return {value.As<Napi::Number>().DoubleValue()};
  if (value.IsBoolean()) return {value.As<Napi::Boolean>().Value()};
  if (value.IsString()) return {value.As<Napi::String>().Utf8Value()};
  if (value.IsArray()) {
    const auto array = value.As<Napi::Array>();
    Attr::List list;
    for (uint32_t i = 0; i < array.Length(); i++) list.push_back(attrOf(array.Get(i), depth + 1));
    return {std::move(list)};
  }
  if (!value.IsObject()) fail("attribute must be a number, boolean, string, list or object");
  const auto object = value.As<Napi::Object>();
  const Napi::Array keys = object.GetPropertyNames();
  Attr::Map map;
  for (uint32_t i = 0; i < keys.Length(); i++) {
    const Napi::Value item = object.Get(keys.Get(i));
    if (!item.IsUndefined()) map.emplace(keys.Get(i).ToString(), attrOf(item, depth + 1));
  }
  return {std::move(map)};
}

// The bytes of a typed array as they are now; valid until JavaScript runs again.
std::span<const std::byte> bytesOf(Napi::Env env, const Napi::Value& value) {
  static constexpr size_t sizes[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8};  // by napi_typedarray_type
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok)
    fail("wanted a typed array");
  if (static_cast<size_t>(type) >= std::size(sizes)) fail("typed arrays of this type hold no tensor");
  return {static_cast<const std::byte*>(data), length * sizes[type]};
}

std::vector<size_t> indicesOf(const Napi::Value& value, const char* what) {
  const Napi::Array array = arrayOf(value, what);
  std::vector<size_t> list;
  for (uint32_t i = 0; i < array.Length(); i++)
    list.push_back(static_cast<size_t>(integerOf(array.Get(i), what, 0, mostBytes)));
  return list;
}

Environment& environmentOf(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

Param paramOf(Napi::Env env, const std::string& role, const Napi::Object& item) {
  Param param{dtypeOf(item.Get("dtype")), {}, {}};
  const Napi::Array shape = arrayOf(item.Get("shape"), "shape of a parameter");
  for (uint32_t d = 0; d < shape.Length(); d++)
    param.shape.push_back(integerOf(shape.Get(d), "size of a parameter", 0, mostBytes));
  const size_t wanted = param.bytes();
  const auto bytes = bytesOf(env, item.Get("data"));
  if (wanted != bytes.size()) fail("parameter '", role, "' has ", bytes.size(), " bytes, its shape wants ", wanted);
  param.memory = environmentOf(env).blockOf(bytes.data());
  param.data = reinterpret_cast<const char*>(bytes.data());
  if (param.memory || bytes.empty()) return param;
  Memory copy(bytes.size());
  std::memcpy(copy.data(), bytes.data(), bytes.size());
  param.data = copy.data();
  param.memory = std::make_shared<const Memory>(std::move(copy));
  return param;
}

TensorType typeOf(const Napi::Object& item) {
  const Napi::Array shape = arrayOf(item.Get("shape"), "plan: shape of a value");
  if (shape.Length() != 5) fail("plan: shape of a value has ", shape.Length(), " sizes, wanted 5");
  int64_t sizes[5];
  for (uint32_t d = 0; d < 5; d++) sizes[d] = integerOf(shape.Get(d), "plan: size of a value", 1, mostBytes);
  TensorType type{dtypeOf(item.Get("dtype")), {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}};
  if (const Napi::Value scale = item.Get("scale"); !scale.IsUndefined()) {
    type.scale = scale.IsNumber() ? scale.As<Napi::Number>().FloatValue() : NAN;
    if (!(type.scale > 0 && type.scale < INFINITY)) fail("plan: scale of a value must be a positive number");
  }
  if (const Napi::Value pitch = item.Get("pitch"); !pitch.IsUndefined())
    type.gap = integerOf(pitch, "plan: pitch of a value", sizes[4], mostBytes) - sizes[4];
  if (const Napi::Value pad = item.Get("pad"); !pad.IsUndefined())
    type.pad = integerOf(pad, "plan: pad of a value", 0, type.gap);
  if (const Napi::Value zero = item.Get("zero"); !zero.IsUndefined())
    type.zero = static_cast<int>(integerOf(zero, "plan: zero of a value", 0, 255));
  return type;
}

PlanSpec::Value valueOf(const Napi::Object& item) {
  PlanSpec::Value value{typeOf(item)};
  const std::string place = textOf(item.Get("place"), "plan: place of a value");
  if (place != "arena" && place != "input" && place != "output") fail("plan: place '", place, "' of a value");
  if (place == "input") value.place = PlanSpec::Place::input;
  if (place == "output") value.place = PlanSpec::Place::output;
  value.at = static_cast<size_t>(integerOf(item.Get("at"), "plan: place of a value", 0, mostBytes));
  const Napi::Value rounds = item.Get("rounds");
  if (!rounds.IsUndefined()) value.rounds = integerOf(rounds, "plan: rounds of a value", 1, mostBytes);
  return value;
}

// --- Native objects in JavaScript's hands -----------------------------------------------------------------------

// `object` may be let go early by release().
template <class T>
struct Held {
  std::shared_ptr<T> object;
  int64_t bytes;

  static Napi::Value wrap(Napi::Env env, std::shared_ptr<T> object, size_t size) {
    auto owned = std::unique_ptr<Held>(new Held{std::move(object), 0});
    auto external = Napi::External<Held>::New(env, owned.get(), [](Napi::Env env, Held* held) {
      held->free(env);
      delete held;
    });  // throws in an environment that is being terminated
    Held* const held = owned.release();
    held->count(env, size);
    external.TypeTag(&tag);
    return external;
  }
  static bool is(const Napi::Value& value) {
    return value.IsExternal() && value.As<Napi::External<Held>>().CheckTypeTag(&tag);
  }
  static Held& unwrap(const Napi::Value& value, const char* what) {
    if (!is(value)) fail("wanted ", what);
    return *value.As<Napi::External<Held>>().Data();
  }
  static const std::shared_ptr<T>& get(const Napi::Value& value, const char* what) {
    Held& held = unwrap(value, what);
    if (!held.object) fail(what, " was disposed of");
    return held.object;
  }
  void free(Napi::Env env) {
    count(env, 0);
    if (object) threads::letGo(std::move(object));
  }
  // What would be free without this object; gives how much more that is than before.
  int64_t resize(size_t size) { return static_cast<int64_t>(size) - std::exchange(bytes, static_cast<int64_t>(size)); }
  // Tells the garbage collector too, of memory of a GPU as of the host's: weights, idle memory and tensors go with the
  // JavaScript object that holds them. process.memoryUsage().external does not show what it is told.
  void count(Napi::Env env, size_t size) {
    if (const int64_t more = resize(size)) Napi::MemoryManagement::AdjustExternalMemory(env, more);
  }
  static const napi_type_tag tag;
};
// The address of a variable tells this copy of the addon from another one.
const char copy = 0;
template <>
const napi_type_tag Held<const Packed>::tag = {0x6f6374636f6e7601, reinterpret_cast<uint64_t>(&copy)};
template <>
const napi_type_tag Held<Program>::tag = {0x6f6374636f6e7602, reinterpret_cast<uint64_t>(&copy)};
template <>
const napi_type_tag Held<PlanSpec>::tag = {0x6f6374636f6e7603, reinterpret_cast<uint64_t>(&copy)};
template <>
const napi_type_tag Held<const Buffer>::tag = {0x6f6374636f6e7604, reinterpret_cast<uint64_t>(&copy)};

PlanSpec::Step stepOf(const Napi::Object& item) {
  PlanSpec::Step step;
  step.node.op = textOf(item.Get("op"), "plan: op of a step");
  step.node.name = textOf(item.Get("name"), "plan: name of a step");
  step.node.attrs = attrOf(item.Get("attrs"));
  step.inputs = indicesOf(item.Get("inputs"), "plan: inputs of a step");
  step.outputs = indicesOf(item.Get("outputs"), "plan: outputs of a step");
  const Napi::Array packed = arrayOf(item.Get("packed"), "plan: packed parameters of a step");
  for (uint32_t i = 0; i < packed.Length(); i++)
    step.node.packed.push_back(Held<const Packed>::get(packed.Get(i), "packed parameters"));
  return step;
}

// Values and steps go behind those that the plan has; of all else the last word counts.
void extend(PlanSpec& spec, const Napi::Object& object) {
  spec.threads = static_cast<int>(integerOf(object.Get("threads"), "plan: threads", 1, threads::most));
  if (const Napi::Value graphs = object.Get("cudaGraphs"); !graphs.IsUndefined()) {
    if (!graphs.IsBoolean()) fail("plan: cudaGraphs must be a boolean");
    spec.cudaGraphs = graphs.As<Napi::Boolean>();
  }
  spec.arenaBytes = static_cast<size_t>(integerOf(object.Get("arenaBytes"), "plan: arenaBytes", 0, mostBytes));
  const Napi::Array values = arrayOf(object.Get("values"), "plan: values"),
                    steps = arrayOf(object.Get("steps"), "plan: steps");
  for (uint32_t i = 0; i < values.Length(); i++)
    spec.values.push_back(valueOf(objectOf(values.Get(i), "plan: a value")));
  for (uint32_t i = 0; i < steps.Length(); i++) spec.steps.push_back(stepOf(objectOf(steps.Get(i), "plan: a step")));
  if (const Napi::Value observed = object.Get("observed"); !observed.IsUndefined())
    spec.observed = indicesOf(observed, "plan: observed values");
  if (object.Get("segments").IsUndefined()) return;
  spec.segments.clear();
  const Napi::Array segments = arrayOf(object.Get("segments"), "plan: segments");
  for (uint32_t i = 0; i < segments.Length(); i++) {
    const Napi::Object item = objectOf(segments.Get(i), "plan: a segment");
    spec.segments.push_back(
        {static_cast<size_t>(integerOf(item.Get("steps"), "plan: steps of a segment", 0, mostBytes)),
         integerOf(item.Get("rounds"), "plan: rounds of a segment", 1, mostBytes)});
  }
}

// --- The functions ----------------------------------------------------------------------------------------------

Napi::Array namesOf(Napi::Env env, const std::vector<DType>& list) {
  auto names = Napi::Array::New(env);
  for (const DType dtype : list) names.Set(names.Length(), nameOf(dtype));
  return names;
}

Napi::Object traitsOf(Napi::Env env, const Traits& traits) {
  auto result = Napi::Object::New(env), ops = Napi::Object::New(env), winograd = Napi::Object::New(env);
  for (const auto& [hint, channels] : traits.winograd) winograd.Set(hint, static_cast<double>(channels));
  for (const auto& [op, kernel] : traits.ops) {
    auto each = Napi::Object::New(env);
    each.Set("dtypes", namesOf(env, kernel.dtypes));
    each.Set("pitched", kernel.pitched);
    const Contract* contract = Registered<Contract>::find(op);
    if (!contract) fail(op, ": a kernel without a contract");
    each.Set("keepsType", contract->keepsType);
    each.Set("mixesTypes", contract->mixesTypes);
    ops.Set(op, each);
  }
  result.Set("isa", traits.isa);
  result.Set("threads", traits.threads);
  result.Set("align", static_cast<double>(traits.align));
  result.Set("channelAlign", static_cast<double>(traits.channelAlign));
  result.Set("pitchAlign", static_cast<double>(traits.pitchAlign));
  static constexpr const char* fuses[] = {"nothing", "epilogues", "all"};
  result.Set("fuses", fuses[static_cast<int>(traits.fuses)]);
  result.Set("mostPooled", traits.mostPooled);
  result.Set("subBatches", traits.subBatches);
  result.Set("inPlace", traits.inPlace);
  result.Set("idleBytes", static_cast<double>(traits.idleBytes));
  result.Set("ownMemory", traits.ownMemory);
  result.Set("winograd", winograd);
  result.Set("computes", namesOf(env, traits.computes));
  result.Set("dotProducts", namesOf(env, traits.dotProducts));
  result.Set("ops", ops);
  return result;
}

Napi::Value devices(const Napi::CallbackInfo& call) {
  const Napi::Env env = call.Env();
  auto list = Napi::Array::New(env);
  for (const auto& [name, kind] : Registered<DeviceKind>::all()) {
    const auto add = [&, &name = name](int index, const char* key, const Napi::Value& value) {
      auto device = Napi::Object::New(env);
      device.Set("name", index == 0 ? name : name + ":" + std::to_string(index));
      device.Set(key, value);
      list.Set(list.Length(), device);
    };
    const auto orWhy = [&](int index, const auto& look) {
      try {
        look();
      } catch (const Error& error) { add(index, "why", Napi::String::New(env, error.what())); }
    };
    orWhy(0, [&, &kind = kind] {
      const int count = kind.count ? kind.count() : 1;
      for (int i = 0; i < count; i++) orWhy(i, [&] { add(i, "traits", traitsOf(env, kind.open(i).traits())); });
    });
  }
  return list;
}

Napi::Value traits(const Napi::CallbackInfo& call) {
  return traitsOf(call.Env(), Device::find(textOf(call[0], "device")).traits());
}

Napi::Value sensors(const Napi::CallbackInfo& call) {
  auto result = Napi::Object::New(call.Env());
  for (const auto& [name, value] : Device::find(textOf(call[0], "device")).sensors()) result.Set(name, value);
  return result;
}

Napi::Value block(const Napi::CallbackInfo& call) {
  const auto bytes = static_cast<size_t>(integerOf(call[0], "bytes", 0, mostBytes));
  using Owner = std::shared_ptr<const Memory>;
  auto owner = std::make_unique<Owner>(environmentOf(call.Env()).block(bytes));
  napi_value buffer = nullptr;
  const auto free = [](napi_env, void*, void* owner) { delete static_cast<Owner*>(owner); };
  if (napi_create_external_arraybuffer(call.Env(), (*owner)->data(), bytes, free, owner.get(), &buffer) != napi_ok)
    return Napi::ArrayBuffer::New(call.Env(), bytes);  // this host has none of such buffers: pack() copies
  (void)owner.release();
  return {call.Env(), buffer};
}

Napi::Value format(const Napi::CallbackInfo& call) {
  const Device& device = Device::find(textOf(call[0], "device"));
  return Napi::String::New(call.Env(), device.format(textOf(call[1], "op"), attrOf(call[2])));
}

Napi::Value pack(const Napi::CallbackInfo& call) {
  struct Packing : Job {
    std::string op;
    Attr attrs;
    Params params;
    std::shared_ptr<const Packed> packed;
    Napi::Value result(Napi::Env env) override {
      return Held<const Packed>::wrap(env, std::move(packed), 0);  // see tell()
    }
  };
  const Device& device = Device::find(textOf(call[0], "device"));
  auto job = std::make_unique<Packing>();
  job->op = textOf(call[1], "op");
  job->attrs = attrOf(call[2]);
  const Napi::Object params = objectOf(call[3], "parameters");
  const Napi::Array roles = params.GetPropertyNames();
  for (uint32_t i = 0; i < roles.Length(); i++) {
    const std::string role = roles.Get(i).ToString();
    job->params.emplace(role, paramOf(call.Env(), role, objectOf(params.Get(role), "parameter")));
  }
  Packing* packing = job.get();
  return environmentOf(call.Env())
      .inBackground(call.Env(), std::move(job), threads::hardware(), [&device, packing](Crew& crew) {
        packing->packed = device.pack(packing->op, packing->attrs, packing->params, crew);
        packing->params.clear();
      });
}

Napi::Value part(const Napi::CallbackInfo& call) {
  Napi::Value before = call[1];
  if (before.IsUndefined()) before = Held<PlanSpec>::wrap(call.Env(), std::make_shared<PlanSpec>(), 0);
  const std::shared_ptr<PlanSpec> spec = Held<PlanSpec>::get(before, "a part of a plan");  // a getter may free it
  extend(*spec, objectOf(call[0], "plan"));
  return before;
}

Napi::Object stepOf(Napi::Env env, const StepInfo& step) {
  auto result = Napi::Object::New(env);
  auto launches = Napi::Array::New(env);
  for (const LaunchInfo& launch : step.launches) {
    auto each = Napi::Object::New(env);
    each.Set("kernel", launch.kernel);
    each.Set("tile", launch.tile);
    each.Set("blocks", launch.blocks);
    each.Set("threads", launch.threads);
    each.Set("sharedBytes", static_cast<double>(launch.sharedBytes));
    each.Set("multiplyAdds", static_cast<double>(launch.multiplyAdds));
    each.Set("operandBytes", static_cast<double>(launch.operandBytes));
    launches.Set(launches.Length(), each);
  }
  result.Set("algorithm", step.algorithm);
  result.Set("launches", launches);
  result.Set("scratchBytes", static_cast<double>(step.scratchBytes));
  return result;
}

Napi::Value compile(const Napi::CallbackInfo& call) {
  struct Compiling : Job {
    PlanSpec spec;
    std::shared_ptr<Program> program;
    Napi::Value result(Napi::Env env) override {
      auto result = Napi::Object::New(env);
      auto steps = Napi::Array::New(env);
      for (const StepInfo& step : program->steps()) steps.Set(steps.Length(), stepOf(env, step));
      const size_t bytes = program->runBytes();
      result.Set("runBytes", static_cast<double>(bytes));
      result.Set("steps", steps);
      result.Set("plan", Held<Program>::wrap(env, std::move(program), 0));  // it has run nothing yet
      return result;
    }
  };
  auto job = std::make_unique<Compiling>();
  // First of all: what a part holds is free after an error too.
  if (Held<PlanSpec>::is(call[1])) {
    job->spec = std::move(*Held<PlanSpec>::get(call[1], "a part of a plan"));
    Held<PlanSpec>::unwrap(call[1], "a part of a plan").free(call.Env());
  } else {
    extend(job->spec, objectOf(call[1], "plan"));
  }
  const std::string name = textOf(call[0], "device");
  const Device& device = Device::find(name);
  Compiling* compiling = job.get();
  return environmentOf(call.Env()).inBackground(call.Env(), std::move(job), 1, [&device, name, compiling](Crew&) {
    complete(compiling->spec, name, device.traits());
    compiling->program = device.compile(std::move(compiling->spec));
  });
}

// By JavaScript's own constructor: napi_create_arraybuffer ends the process where there is no memory.
Napi::ArrayBuffer bufferOf(Napi::Env env, size_t bytes, const std::string& what) {
  try {
    const auto size = Napi::Number::New(env, static_cast<double>(bytes));
    const Napi::Value made = env.Global().Get("ArrayBuffer").As<Napi::Function>().New({size});
    if (made.IsArrayBuffer() && made.As<Napi::ArrayBuffer>().ByteLength() == bytes) return made.As<Napi::ArrayBuffer>();
  } catch (const Napi::Error&) {}
  fail(what, " takes ", bytes, " bytes, more than JavaScript gets for an ArrayBuffer");
}

Napi::Object histogramOf(Napi::Env env, const Histogram& histogram) {
  auto result = Napi::Object::New(env);
  const std::vector<uint32_t>& counted = histogram.counts;
  auto counts = Napi::Uint32Array::New(env, counted.size(), bufferOf(env, counted.size() * 4, "plan: a histogram"), 0);
  std::copy(counted.begin(), counted.end(), counts.Data());
  result.Set("least", histogram.least);
  result.Set("most", histogram.most);
  result.Set("limit", histogram.limit);
  result.Set("counts", counts);
  result.Set("firstNotFinite", static_cast<double>(histogram.firstNotFinite));
  return result;
}

Napi::Value run(const Napi::CallbackInfo& call) {
  struct Running : Job {
    std::shared_ptr<Program> program;
    std::shared_ptr<Request> request;
    ~Running() override {
      request.reset();                                                   // gives its memory to the plan
      if (program.use_count() == 1) threads::letGo(std::move(program));  // disposed of during the run
    }
    void stop() override { request->stop = true; }
    Napi::Value result(Napi::Env env) override {
      if (!request->error.empty()) fail(request->error);
      auto result = Napi::Object::New(env);
      auto outputs = Napi::Array::New(env);
      for (const auto& kept : request->kept)
        if (request->completed) outputs.Set(outputs.Length(), Held<const Buffer>::wrap(env, kept, kept->bytes()));
      for (const auto& bytes : request->outputs) {
        if (!request->completed || !request->kept.empty()) break;
        auto buffer = bufferOf(env, bytes.size(), "plan: output " + std::to_string(outputs.Length()));
        std::memcpy(buffer.Data(), bytes.data(), bytes.size());
        outputs.Set(outputs.Length(), buffer);
      }
      auto times = Napi::Float32Array::New(env, request->stepMilliseconds.size());
      std::copy(request->stepMilliseconds.begin(), request->stepMilliseconds.end(), times.Data());
      auto histograms = Napi::Array::New(env);
      for (const Histogram& each : request->histograms)
        if (request->completed) histograms.Set(histograms.Length(), histogramOf(env, each));
      result.Set("completed", request->completed);
      result.Set("outputs", outputs);
      result.Set("stepMilliseconds", times);
      result.Set("histograms", histograms);
      return result;
    }
  };
  const Napi::Env env = call.Env();
  auto job = std::make_unique<Running>();
  job->program = Held<Program>::get(call[0], "a plan");
  const Napi::Array inputs = arrayOf(call[1], "plan: inputs");
  Buffers buffers(inputs.Length());
  bool onDevice = false;
  for (uint32_t i = 0; i < buffers.size(); i++) {
    if (!Held<const Buffer>::is(inputs.Get(i))) continue;
    buffers[i] = Held<const Buffer>::get(inputs.Get(i), "an input");
    onDevice = true;
  }
  job->request = onDevice ? job->program->prepareOnDevice(buffers) : job->program->prepare();
  Request& request = *job->request;
  for (uint32_t i = 0; i < request.inputs.size(); i++) {
    if (onDevice && buffers[i]) continue;
    const auto bytes = bytesOf(env, inputs.Get(i)), to = std::as_bytes(request.inputs[i]);
    if (bytes.size() != to.size()) fail("plan: input ", i, " has ", bytes.size(), " bytes, wanted ", to.size());
    std::memcpy(request.inputs[i].data(), bytes.data(), bytes.size());
  }
  const auto steps = static_cast<int64_t>(job->program->steps().size());
  const int64_t times = integerOf(call[2], "times", 0, std::max<int64_t>(1, steps));
  if (times > 1 && times != steps) fail("plan: ", times, " times, wanted 1, or one for each of its ", steps, " steps");
  request.stepMilliseconds.resize(static_cast<size_t>(times));

  auto result = Napi::Object::New(env);
  // The memory of a run goes with the run, not when the garbage collector finds this function.
  result.Set("cancel", Napi::Function::New(env, [weak = std::weak_ptr(job->request)](const Napi::CallbackInfo&) {
               if (const auto request = weak.lock()) request->stop = true;
             }));
  Environment& environment = environmentOf(env);
  result.Set("done", environment.begin(env, std::move(job), [&environment](Job* job) {
    auto& running = static_cast<Running&>(*job);
    running.program->start(running.request, [&environment, job] { environment.report(job); });
  }));
  return result;
}

Napi::Value toDevice(const Napi::CallbackInfo& call) {
  struct Writing : Job {
    Memory data;
    std::shared_ptr<const Buffer> buffer;
    Napi::Value result(Napi::Env env) override {
      const size_t size = buffer->bytes();
      return Held<const Buffer>::wrap(env, std::move(buffer), size);
    }
  };
  const Device& device = Device::find(textOf(call[0], "device"));
  const auto bytes = bytesOf(call.Env(), call[1]);
  auto job = std::make_unique<Writing>();
  job->data = Memory(bytes.size());
  std::memcpy(job->data.data(), bytes.data(), bytes.size());
  Writing* writing = job.get();
  return environmentOf(call.Env()).inBackground(call.Env(), std::move(job), 1, [&device, writing](Crew&) {
    const Memory data = std::move(writing->data);
    writing->buffer = device.write({reinterpret_cast<const std::byte*>(data.data()), data.size()});
  });
}

Napi::Value toHost(const Napi::CallbackInfo& call) {
  struct Reading : Job {
    std::shared_ptr<const Buffer> buffer;
    Memory data;
    Napi::Value result(Napi::Env env) override {
      auto made = bufferOf(env, data.size(), "tensor: it");
      std::memcpy(made.Data(), data.data(), data.size());
      return made;
    }
  };
  auto job = std::make_unique<Reading>();
  job->buffer = Held<const Buffer>::get(call[0], "a tensor");
  Reading* reading = job.get();
  return environmentOf(call.Env()).inBackground(call.Env(), std::move(job), 1, [reading](Crew&) {
    const auto buffer = std::move(reading->buffer);
    reading->data = Memory(buffer->bytes());
    buffer->read({reinterpret_cast<std::byte*>(reading->data.data()), reading->data.size()});
  });
}

Napi::Value bytes(const Napi::CallbackInfo& call) {
  if (!Held<Program>::is(call[0])) {
    const auto& packed = Held<const Packed>::get(call[0], "a plan or packed parameters");
    return Napi::Number::New(call.Env(), static_cast<double>(packed->bytes()));
  }
  const size_t size = Held<Program>::get(call[0], "a plan")->idleBytes();
  Held<Program>::unwrap(call[0], "a plan").count(call.Env(), size);
  return Napi::Number::New(call.Env(), static_cast<double>(size));
}

// Of all at once: beyond some 64 MiB each word to V8 makes it mark its heap, for 5 ms or more.
void tell(const Napi::CallbackInfo& call) {
  const Napi::Array list = arrayOf(call[0], "packed parameters");
  int64_t more = 0;
  for (uint32_t i = 0; i < list.Length(); i++) {
    const Napi::Value each = list.Get(i);
    const size_t bytes = Held<const Packed>::get(each, "packed parameters")->bytes();
    more += Held<const Packed>::unwrap(each, "packed parameters").resize(bytes);
  }
  if (more) Napi::MemoryManagement::AdjustExternalMemory(call.Env(), more);
}

void trim(const Napi::CallbackInfo& call) {
  Held<Program>::get(call[0], "a plan")->trim();
  Held<Program>::unwrap(call[0], "a plan").count(call.Env(), 0);
}

// Small blocks, and copies of parameters while they were packed, came from malloc, which keeps what is free.
void trimHeap() {
#if defined(__GLIBC__)
  threads::submit(
      1, [](Crew&) { malloc_trim(0); }, threads::Kind::background);
#endif
}

void release(const Napi::CallbackInfo& call) {
  if (call[0].IsArrayBuffer()) {
    auto buffer = call[0].As<Napi::ArrayBuffer>();
    if (environmentOf(call.Env()).blockOf(buffer.Data())) buffer.Detach();
    return;
  }
  if (Held<const Buffer>::is(call[0])) {
    Held<const Buffer>::unwrap(call[0], "a tensor").free(call.Env());
  } else if (Held<Program>::is(call[0])) {
    Held<Program>::unwrap(call[0], "a plan").free(call.Env());
    trimHeap();
  } else {
    Held<const Packed>::unwrap(call[0], "a plan or packed parameters").free(call.Env());
  }
}

Napi::Value peak(const Napi::CallbackInfo& call) {
  struct Measuring : Job {
    double gflops = 0;
    Napi::Value result(Napi::Env env) override { return Napi::Number::New(env, gflops); }
  };
  const int count = static_cast<int>(integerOf(call[0], "threads", 1, threads::most));
  auto job = std::make_unique<Measuring>();
  Measuring* measuring = job.get();
  return environmentOf(call.Env()).inBackground(call.Env(), std::move(job), count, [measuring](Crew& crew) {
    measuring->gflops = measurePeak(crew);
  });
}

void giveWay(const Napi::CallbackInfo&) { threads::giveWay(); }

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment(env));
  exports.Set("devices", Napi::Function::New(env, devices));
  auto kinds = Napi::Array::New(env);
  for (const auto& [name, _] : Registered<DeviceKind>::all()) kinds.Set(kinds.Length(), name);
  exports.Set("kinds", kinds);
  exports.Set("traits", Napi::Function::New(env, traits));
  exports.Set("block", Napi::Function::New(env, block));
  exports.Set("format", Napi::Function::New(env, format));
  exports.Set("pack", Napi::Function::New(env, pack));
  exports.Set("part", Napi::Function::New(env, part));
  exports.Set("sensors", Napi::Function::New(env, sensors));
  exports.Set("compile", Napi::Function::New(env, compile));
  exports.Set("run", Napi::Function::New(env, run));
  exports.Set("toDevice", Napi::Function::New(env, toDevice));
  exports.Set("toHost", Napi::Function::New(env, toHost));
  exports.Set("bytes", Napi::Function::New(env, bytes));
  exports.Set("tell", Napi::Function::New(env, tell));
  exports.Set("trim", Napi::Function::New(env, trim));
  exports.Set("release", Napi::Function::New(env, release));
  exports.Set("giveWay", Napi::Function::New(env, giveWay));
  exports.Set("peak", Napi::Function::New(env, peak));
  exports.Set("mostThreads", threads::most);
  return exports;
}

NODE_API_MODULE(octconv, init)

}  // namespace
}  // namespace octconv
