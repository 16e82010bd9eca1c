#include "convolutions.h"

namespace octconv::cuda {

Convolutions::Convolutions(std::shared_ptr<Context> made) : context(std::move(made)) {
  const Cudnn& cudnn = Cudnn::get();
  const Context::Use use(*context);
  cudnn.check(cudnn.cudnnCreate(&handle), "cudnn: a handle on " + context->name);
}
Convolutions::~Convolutions() {
  context->giveBack([&](const Driver&) { Cudnn::get().cudnnDestroy(handle); });
}

std::shared_ptr<const ConvolutionPlan> Convolutions::plan(const Convolution& convolution) {
  const Context::Use use(*context);
  std::lock_guard lock(mutex);
  std::weak_ptr<const ConvolutionPlan>& known = plans[convolution];
  if (std::shared_ptr<const ConvolutionPlan> plan = known.lock()) return plan;
  std::erase_if(plans, [&](const auto& each) { return each.second.expired() && &each.second != &known; });
  auto made = std::make_unique<ConvolutionPlan>(PlanTarget{handle}, convolution);
  const auto giveBack = [self = shared_from_this()](const ConvolutionPlan* old) mutable {
    const auto owner = std::move(self);  // `plans` may keep this function
    owner->context->giveBack([&](const Driver&) { delete old; });
  };
  std::shared_ptr<const ConvolutionPlan> plan(made.release(), giveBack);
  known = plan;
  return plan;
}

void Convolutions::execute(const ConvolutionPlan& plan, const ConvolutionPlan::Pointers& at, CUstream stream) {
  const Cudnn& cudnn = Cudnn::get();
  std::lock_guard lock(mutex);
  cudnn.check(cudnn.cudnnSetStream(handle, stream), "cudnn: a stream");
  plan.execute(handle, at);
}

}  // namespace octconv::cuda
