// Plans on a GPU. All launches are made when a plan is compiled; runs differ in the address of their arena alone.
#pragma once
#include <deque>
#include <mutex>

#include "../core/device.h"
#include "kernel.h"
#include "queue.h"

namespace octconv::cuda {

class Program : public octconv::Program, private Context::Keeper {
 public:
  Program(Gpu& gpu, const Kernels& (*find)(const std::string& op), PlanSpec spec);
  ~Program() override;
  size_t runBytes() const override { return arenaBytes; }
  size_t idleBytes() const override;
  void trim() override;
  const std::vector<StepInfo>& steps() const override { return infos; }
  std::shared_ptr<Request> prepare() override;
  std::shared_ptr<Request> prepareOnDevice(Buffers inputs) override;
  void start(std::shared_ptr<Request> request, std::function<void()> done) override;

 private:
  struct Step {
    size_t index;                                         // in the plan
    std::vector<std::pair<CUfunction, Launch>> launches;  // no function: Launch::call
  };
  // What a run needs of the GPU.
  struct Room {
    Block arena;  // values of the plan, then inputs and outputs
    Stream stream;
    std::unique_ptr<Graph> graph = nullptr;  // of the plan's launches, from the second run on
  };
  // What runs that have ended leave for the next ones.
  struct Idle {
    std::vector<std::unique_ptr<Room>> rooms;
    std::vector<Block> boundaries;  // pinned inputs and outputs
    std::vector<Block> outputs;     // that were kept on the GPU
  };
  struct Boundary;
  struct Output;
  class Run;

  int64_t placeOf(size_t value, int64_t round) const;
  void dropIdle() override;
  Idle takeIdle();
  void dropSurplus();

  Gpu& gpu;
  const std::shared_ptr<Context> context;  // that has the functions
  const PlanSpec spec;
  std::vector<Step> launched;  // in the order of a run
  std::vector<StepInfo> infos;
  std::vector<size_t> inputsAt, outputsAt;  // in the arena
  size_t arenaBytes = 0, boundaryBytes = 0;
  // False once a capture has failed: not every engine of cuDNN can be captured. Of runs that begin, one at a time.
  bool capturable = true;
  mutable std::mutex mutex;
  Idle idle;  // last: its graphs end before the plans of cuDNN that `launched` holds
};

}  // namespace octconv::cuda
