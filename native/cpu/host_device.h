// A device whose kernels run in host memory: `cpu` and `reference` differ in their tables and traits.
#pragma once
#include "program.h"

namespace octconv {

template <class Kind>
class HostDevice : public Device {
 public:
  HostDevice(const char* name, Traits given) : name(name), traits_(std::move(given)) {
    for (const auto& [op, kernels] : Registered<Kernels<Kind>>::all())
      traits_.ops.emplace(op, OpTraits{kernels.dtypes, kernels.pitched});
  }
  const Traits& traits() const override { return traits_; }

  std::string format(const std::string& op, const Attr& attrs) const override {
    const Kernels<Kind>& kernels = find(op);
    return kernels.format ? kernels.format(attrs) : "";
  }
  std::shared_ptr<const Packed> pack(const std::string& op, const Attr& attrs, const Params& params,
                                     Crew& crew) const override {
    const Kernels<Kind>& kernels = find(op);
    if (!kernels.pack) fail(op, ": this op has no parameters");
    return kernels.pack(attrs, params, crew);
  }
  std::shared_ptr<Program> compile(PlanSpec spec) const override {
    std::vector<Kernel> kernels;
    for (const PlanSpec::Step& step : spec.steps) kernels.push_back(find(step.node.op).make(step.node, spec.threads));
    return std::make_shared<HostProgram>(std::move(spec), std::move(kernels));
  }

 private:
  const Kernels<Kind>& find(const std::string& op) const {
    const auto* kernels = Registered<Kernels<Kind>>::find(op);
    if (!kernels) fail(op, ": no kernel on ", name);
    return *kernels;
  }

  const char* name;
  Traits traits_;
};

}  // namespace octconv
