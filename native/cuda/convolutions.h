// What cuDNN computes on one GPU: its handle, and the plans that are in use.
#pragma once
#include <map>
#include <memory>
#include <mutex>

#include "cudnn.h"
#include "gpu.h"

namespace octconv::cuda {

class Convolutions : public std::enable_shared_from_this<Convolutions> {
 public:
  explicit Convolutions(std::shared_ptr<Context> context);
  ~Convolutions();
  Convolutions(const Convolutions&) = delete;

  // May take long. It is shared by all who want the same convolution, and goes with the last of them.
  std::shared_ptr<const ConvolutionPlan> plan(const Convolution& convolution);
  // With the context in use, as by Run.
  void execute(const ConvolutionPlan& plan, const ConvolutionPlan::Pointers& at, CUstream stream);

 private:
  const std::shared_ptr<Context> context;
  std::mutex mutex;  // a handle is for one thread at a time
  cudnnHandle_t handle = nullptr;
  std::map<Convolution, std::weak_ptr<const ConvolutionPlan>> plans;
};

}  // namespace octconv::cuda
