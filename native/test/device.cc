// A device for test/device.test.ts, never shipped: it records the calls that it gets and computes nothing. An output
// holds the list of the calls as text, one character code per element. It takes its memory as it likes and shares no
// code with the devices in host memory.
#include "core/device.h"

#include <algorithm>
#include <mutex>

#include "core/registry.h"

namespace octconv {
namespace {

class Calls {
 public:
  void add(const std::string& call) {
    std::lock_guard lock(mutex);
    text += (text.empty() ? "" : ", ") + call;
  }
  std::string all() {
    std::lock_guard lock(mutex);
    return text;
  }

 private:
  std::mutex mutex;
  std::string text;
};
Calls calls;

struct RecordedParams : Packed {
  size_t count;
  explicit RecordedParams(size_t count) : count(count) {}
  size_t bytes() const override { return count; }
};

class Recording : public Program {
 public:
  explicit Recording(PlanSpec given) : spec(std::move(given)) {
    for (const PlanSpec::Step& step : spec.steps) infos.push_back({"records " + step.node.op});
  }

  size_t runBytes() const override { return spec.arenaBytes; }
  const std::vector<StepInfo>& steps() const override { return infos; }
  std::shared_ptr<Request> prepare() override {
    calls.add("prepare");
    struct Owned : Request {
      std::vector<std::vector<std::byte>> memory;
    };
    auto request = std::make_shared<Owned>();
    request->memory.reserve(spec.inputBytes.size() + spec.outputBytes.size());
    const auto place = [&](size_t bytes) { return std::span(request->memory.emplace_back(bytes)); };
    for (const size_t bytes : spec.inputBytes) request->inputs.push_back(place(bytes));
    for (const size_t bytes : spec.outputBytes) request->outputs.push_back(place(bytes));
    return request;
  }
  void start(std::shared_ptr<Request> request, std::function<void()> done) override {
    calls.add("start");
    const std::string text = calls.all();
    for (const auto output : request->outputs) {
      auto* to = reinterpret_cast<float*>(output.data());
      std::copy_n(text.data(), std::min(text.size(), output.size() / sizeof(float)), to);
    }
    request->completed = !request->stop;
    done();
  }

 private:
  const PlanSpec spec;
  std::vector<StepInfo> infos;
};

class Recorder : public Device {
 public:
  Recorder() {
    traits_.isa = "records its calls";
    traits_.threads = 1;
    traits_.ops = {{"octConv", {{DType::f32}, false}}, {"relu", {{DType::f32}, false}}};
  }
  const Traits& traits() const override { return traits_; }
  std::string format(const std::string& op, const Attr&) const override {
    calls.add("format " + op);
    return "";
  }
  std::shared_ptr<const Packed> pack(const std::string& op, const Attr&, const Params& params, Crew&) const override {
    calls.add("pack " + op);
    size_t bytes = 0;
    for (const auto& [role, param] : params) bytes += param.bytes();
    return std::make_shared<RecordedParams>(bytes);
  }
  std::shared_ptr<Program> compile(PlanSpec spec) const override {
    std::string call = "compile";
    for (const PlanSpec::Step& step : spec.steps) {
      if (step.node.op == "octConv") step.node.weights<RecordedParams>();
      call += " " + step.node.op;
    }
    calls.add(call);
    return std::make_shared<Recording>(std::move(spec));
  }

 private:
  Traits traits_;
};

Device& open(int) {
  static auto& device = *new Recorder;
  return device;
}

const Registered<DeviceKind> kind{"recorder", {open}};

}  // namespace
}  // namespace octconv
