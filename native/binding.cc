// The language boundary, and the only file that includes napi.h: convert, call, return.
//
//   info()                                       instruction set and threads of this process
//   pack(op, device, attrs, params)              -> packed parameters
//   compile(plan)                                -> { plan, runBytes, algorithms }
//   run(plan, inputs, outputs, stepTimes | null) -> { done: Promise<boolean>, cancel() }; `done` is false if cancelled
//   release(packed | plan)                       gives its memory back before the garbage collector does
//   peak(threads)                                measured GFLOP/s of fused multiply-adds; waits for it, some 0.1 s at
//   most
//
// Typed arrays are used where they lie, without a copy; they are kept alive until the run has ended.
#include <napi.h>

#include <condition_variable>
#include <future>
#include <mutex>
#include <unordered_set>

#include "core/plan.h"
#include "cpu/levels.h"
#include "cpu/peak.h"

namespace octconv {
namespace {

struct Job;

// What belongs to one environment (the main thread or a worker_threads worker).
class Environment {
 public:
  static void finish(Napi::Env env, Napi::Function, Environment* self, Job* job);
  using Channel = Napi::TypedThreadSafeFunction<Environment, Job, finish>;

  explicit Environment(Napi::Env env) : channel(Channel::New(env, "octconv", 0, 1, this)) {
    pool::retain();
    channel.Unref(env);
    // Hooks run last in, first out: this one, before the channel's own.
    napi_add_env_cleanup_hook(env, [](void* self) { static_cast<Environment*>(self)->shutDown(); }, this);
  }

  void start(Napi::Env env, Job* job) {
    if (running.empty()) channel.Ref(env);  // a run in flight keeps the process alive
    std::lock_guard lock(mutex);
    running.insert(job);
    inFlight++;
  }
  void ended(Napi::Env env, Job* job) {
    std::lock_guard lock(mutex);
    running.erase(job);
    if (running.empty()) channel.Unref(env);
  }
  // Called by a pool thread; the environment may be gone right after it.
  void report(Job* job) {
    std::lock_guard lock(mutex);
    channel.NonBlockingCall(job);
    if (--inFlight == 0) drained.notify_all();
  }

 private:
  void shutDown();

  Channel channel;
  std::mutex mutex;
  std::condition_variable drained;
  std::unordered_set<Job*> running;  // until their promise is settled
  int64_t inFlight = 0;              // on the pool's threads
};

struct Job {
  explicit Job(std::shared_ptr<Plan> plan) : plan(std::move(plan)) {}
  std::shared_ptr<Plan> plan;
  Plan::Request request;
  napi_deferred promise = nullptr;
  Napi::ObjectReference arrays;  // the typed arrays that the run reads and writes
  bool completed = false;
  std::string error;
  uint64_t number = 0;  // in the pool
};

void Environment::finish(Napi::Env env, Napi::Function, Environment* self, Job* raw) {
  const std::unique_ptr<Job> job(raw);
  if (env == nullptr) {  // the environment is being torn down
    job->arrays.SuppressDestruct();
    return;
  }
  self->ended(env, raw);
  // Plain Node-API without its statuses: in a worker that is being terminated every call fails, and none may throw.
  napi_value value = nullptr, text = nullptr;
  if (job->error.empty()) {
    napi_get_boolean(env, job->completed, &value);
    napi_resolve_deferred(env, job->promise, value);
  } else {
    napi_create_string_utf8(env, job->error.data(), job->error.size(), &text);
    napi_create_error(env, nullptr, text, &value);
    napi_reject_deferred(env, job->promise, value);
  }
}

void Environment::shutDown() {
  for (Job* job : running) {  // which only this thread changes
    job->request.cancelled->store(true);
    if (pool::withdraw(job->number)) report(job);
  }
  {
    std::unique_lock lock(mutex);
    drained.wait(lock, [this] { return inFlight == 0; });
  }
  pool::release();
}

// --- JavaScript to plain structs --------------------------------------------------------------------------------

DType dtypeOf(const Napi::Value& value) {
  const std::string name = value.ToString();
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8, DType::u8, DType::i32})
    if (name == nameOf(dtype)) return dtype;
  fail("dtype '", name, "' is unknown");
}

Device deviceOf(const Napi::Value& value) {
  const std::string name = value.ToString();
  for (const Device device : {Device::reference, Device::cpu})
    if (name == nameOf(device)) return device;
  fail("device '", name, "' is unknown, wanted cpu or reference");
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

struct Bytes {
  void* data;
  size_t size;
};

Bytes bytesOf(Napi::Env env, const Napi::Value& value) {
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok)
    fail("wanted a typed array");
  switch (type) {
    case napi_int8_array:
    case napi_uint8_array:
    case napi_uint8_clamped_array:
      return {data, length};
    case napi_int16_array:
    case napi_uint16_array:
      return {data, length * 2};
    case napi_int32_array:
    case napi_uint32_array:
    case napi_float32_array:
      return {data, length * 4};
    default:
      fail("typed arrays of this type hold no tensor");
  }
}

std::vector<size_t> indices(const Napi::Value& value) {
  const auto array = value.As<Napi::Array>();
  std::vector<size_t> list;
  for (uint32_t i = 0; i < array.Length(); i++) list.push_back(array.Get(i).ToNumber().Uint32Value());
  return list;
}

// Native objects in JavaScript's hands; `Held` may be emptied early by release().
template <class T>
struct Held {
  std::shared_ptr<T> object;
  int64_t bytes;

  static Napi::Value wrap(Napi::Env env, std::shared_ptr<T> object, size_t size) {
    auto* held = new Held{std::move(object), static_cast<int64_t>(size)};
    Napi::MemoryManagement::AdjustExternalMemory(env, held->bytes);
    auto external = Napi::External<Held>::New(env, held, [](Napi::Env env, Held* held) {
      held->free(env);
      delete held;
    });
    external.TypeTag(&tag);
    return external;
  }
  static Held* unwrap(const Napi::Value& value, const char* what) {
    if (!value.IsExternal() || !value.As<Napi::External<Held>>().CheckTypeTag(&tag)) fail("wanted ", what);
    return value.As<Napi::External<Held>>().Data();
  }
  void free(Napi::Env env) {
    if (!object) return;
    object.reset();
    Napi::MemoryManagement::AdjustExternalMemory(env, -bytes);
  }
  static const napi_type_tag tag;
};
template <>
const napi_type_tag Held<const Packed>::tag = {0x6f6374636f6e7601, 1};
template <>
const napi_type_tag Held<Plan>::tag = {0x6f6374636f6e7602, 1};

// --- The functions ----------------------------------------------------------------------------------------------

Napi::Value info(const Napi::CallbackInfo& call) {
  auto result = Napi::Object::New(call.Env());
  result.Set("isa", levelNames[static_cast<int>(level())]);
  result.Set("threads", pool::hardwareThreads());
  return result;
}

Napi::Value packParams(const Napi::CallbackInfo& call) {
  const std::string name = call[0].ToString();
  const Device device = deviceOf(call[1]);
  const auto object = call[3].As<Napi::Object>();
  const Napi::Array roles = object.GetPropertyNames();
  Params params;
  for (uint32_t i = 0; i < roles.Length(); i++) {
    const auto item = object.Get(roles.Get(i)).As<Napi::Object>();
    Param param{dtypeOf(item.Get("dtype")), {}, nullptr};
    const auto shape = item.Get("shape").As<Napi::Array>();
    for (uint32_t d = 0; d < shape.Length(); d++) param.shape.push_back(shape.Get(d).ToNumber().Int64Value());
    const Bytes bytes = bytesOf(call.Env(), item.Get("data"));
    if (param.elements() < 0 || static_cast<size_t>(param.elements()) * octconv::bytesOf(param.dtype) != bytes.size)
      fail(name, ": parameter '", roles.Get(i).ToString().Utf8Value(), "' has ", bytes.size,
           " bytes, its shape wants another size");
    param.data = bytes.data;
    params.emplace(roles.Get(i).ToString(), std::move(param));
  }
  const Op& op = Register::find(name, device);
  if (!op.pack) fail(name, ": this op has no parameters");
  auto packed = op.pack(attrOf(call[2]), params, device);
  const size_t bytes = packed->bytes();
  return Held<const Packed>::wrap(call.Env(), std::move(packed), bytes);
}

Napi::Value compile(const Napi::CallbackInfo& call) {
  const auto object = call[0].As<Napi::Object>();
  PlanSpec spec;
  spec.device = deviceOf(object.Get("device"));
  spec.threads = object.Get("threads").ToNumber();
  spec.arenaBytes = static_cast<size_t>(object.Get("arenaBytes").ToNumber().Int64Value());
  const auto values = object.Get("values").As<Napi::Array>(), steps = object.Get("steps").As<Napi::Array>();
  for (uint32_t i = 0; i < values.Length(); i++) {
    const auto item = values.Get(i).As<Napi::Object>();
    const auto shape = item.Get("shape").As<Napi::Array>();
    constexpr int64_t most = int64_t{1} << 40;
    int64_t sizes[5], elements = 1;
    for (uint32_t d = 0; d < 5; d++) {
      sizes[d] = shape.Get(d).ToNumber().Int64Value();
      if (sizes[d] < 1 || sizes[d] > most / elements) fail("plan: value ", i, " has an impossible shape");
      elements *= sizes[d];
    }
    const std::string place = item.Get("place").ToString();
    TensorType type{dtypeOf(item.Get("dtype")), {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}};
    if (item.Get("scale").IsNumber()) type.scale = item.Get("scale").ToNumber().FloatValue();
    const Napi::Value rounds = item.Get("rounds");
    const int64_t count = rounds.IsNumber() ? rounds.As<Napi::Number>().Int64Value() : 1;
    if (count < 1 || count > most / elements) fail("plan: value ", i, " has impossible rounds");
    if (item.Get("zero").IsNumber()) type.zero = item.Get("zero").ToNumber().Int32Value();
    PlanSpec::Value value{type, PlanSpec::Place::arena, static_cast<size_t>(item.Get("at").ToNumber().Int64Value()),
                          count};
    if (place == "input") value.place = PlanSpec::Place::input, spec.inputs = std::max(spec.inputs, value.at + 1);
    if (place == "output") value.place = PlanSpec::Place::output, spec.outputs = std::max(spec.outputs, value.at + 1);
    spec.values.push_back(value);
  }
  for (uint32_t i = 0; i < steps.Length(); i++) {
    const auto item = steps.Get(i).As<Napi::Object>();
    PlanSpec::Step step;
    step.node.op = item.Get("op").ToString();
    step.node.name = item.Get("name").ToString();
    step.node.attrs = attrOf(item.Get("attrs"));
    step.inputs = indices(item.Get("inputs"));
    step.outputs = indices(item.Get("outputs"));
    if (item.Has("packed"))
      step.node.packed = Held<const Packed>::unwrap(item.Get("packed"), "packed parameters")->object;
    spec.steps.push_back(std::move(step));
  }
  if (object.Get("segments").IsArray()) {
    const auto segments = object.Get("segments").As<Napi::Array>();
    for (uint32_t i = 0; i < segments.Length(); i++) {
      const auto item = segments.Get(i).As<Napi::Object>();
      spec.segments.push_back({item.Get("steps").ToNumber().Uint32Value(), item.Get("rounds").ToNumber().Int64Value()});
    }
  }
  auto plan = std::make_shared<Plan>(std::move(spec));
  auto result = Napi::Object::New(call.Env());
  auto algorithms = Napi::Array::New(call.Env());
  for (const Kernel& kernel : plan->kernels) algorithms.Set(algorithms.Length(), kernel.algorithm);
  result.Set("runBytes", static_cast<double>(plan->runBytes()));
  result.Set("algorithms", algorithms);
  const size_t bytes = plan->runBytes();
  result.Set("plan", Held<Plan>::wrap(call.Env(), std::move(plan), bytes));
  return result;
}

Napi::Value run(const Napi::CallbackInfo& call) {
  const Napi::Env env = call.Env();
  auto plan = Held<Plan>::unwrap(call[0], "a plan")->object;
  if (!plan) fail("plan: it was disposed");
  auto job = std::make_unique<Job>(std::move(plan));
  auto arrays = Napi::Array::New(env);
  const auto take = [&](const Napi::Value& list, size_t count, const char* what, auto wanted) {
    std::vector<void*> addresses;
    for (uint32_t i = 0; i < count; i++) {
      const Napi::Value item = list.As<Napi::Array>().Get(i);
      const Bytes bytes = bytesOf(env, item);
      if (bytes.size != wanted(i)) fail("plan: ", what, ' ', i, " has ", bytes.size, " bytes, wanted ", wanted(i));
      addresses.push_back(bytes.data);
      arrays.Set(arrays.Length(), item);
    }
    return addresses;
  };
  const Plan& p = *job->plan;
  job->request.inputs = take(call[1], p.spec.inputs, "input", [&](size_t i) { return p.inputBytes(i); });
  job->request.outputs = take(call[2], p.spec.outputs, "output", [&](size_t i) { return p.outputBytes(i); });
  if (!call[3].IsNull()) {
    const Bytes times = bytesOf(env, call[3]);
    if (times.size != p.spec.steps.size() * sizeof(float)) fail("plan: step times want ", p.spec.steps.size(), " f32");
    job->request.stepMilliseconds = static_cast<float*>(times.data);
    arrays.Set(arrays.Length(), call[3]);
  }
  job->arrays = Napi::Persistent(arrays.As<Napi::Object>());

  auto* environment = env.GetInstanceData<Environment>();
  auto result = Napi::Object::New(env);
  const auto cancelled = job->request.cancelled;
  napi_value done = nullptr;
  if (napi_create_promise(env, &job->promise, &done) != napi_ok) fail("plan: no promise could be made");
  result.Set("done", done);
  Job* raw = job.release();
  environment->start(env, raw);
  try {
    raw->number = pool::submit(raw->plan->spec.threads, [environment, raw](Gang& gang) {
      try {
        raw->completed = raw->plan->run(raw->request, gang);
      } catch (const std::exception& error) { raw->error = error.what(); }
      environment->report(raw);
    });
  } catch (const std::exception& error) {  // no thread could be started
    raw->error = error.what();
    environment->report(raw);
  }
  // The job may be gone when cancel is called, unless it still waits in the queue: so the flag is shared.
  const auto cancel = [environment, raw, cancelled, number = raw->number](const Napi::CallbackInfo&) {
    cancelled->store(true);
    if (pool::withdraw(number)) environment->report(raw);
  };
  result.Set("cancel", Napi::Function::New(env, cancel));
  return result;
}

void release(const Napi::CallbackInfo& call) {
  if (call[0].As<Napi::External<Held<Plan>>>().CheckTypeTag(&Held<Plan>::tag))
    Held<Plan>::unwrap(call[0], "a plan")->free(call.Env());
  else
    Held<const Packed>::unwrap(call[0], "a plan or packed parameters")->free(call.Env());
}

Napi::Value peak(const Napi::CallbackInfo& call) {
  const auto gflops = std::make_shared<std::promise<double>>();
  pool::submit(call[0].ToNumber(), [gflops](Gang& gang) {
    try {
      gflops->set_value(measurePeak(gang));
    } catch (...) { gflops->set_exception(std::current_exception()); }
  });
  return Napi::Number::New(call.Env(), gflops->get_future().get());
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment(env));
  exports.Set("info", Napi::Function::New(env, info));
  exports.Set("pack", Napi::Function::New(env, packParams));
  exports.Set("compile", Napi::Function::New(env, compile));
  exports.Set("run", Napi::Function::New(env, run));
  exports.Set("release", Napi::Function::New(env, release));
  exports.Set("peak", Napi::Function::New(env, peak));
  return exports;
}

NODE_API_MODULE(octconv, init)

}  // namespace
}  // namespace octconv
