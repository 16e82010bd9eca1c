// Plans of kernels in host memory, run on our threads.
#pragma once
#include <mutex>

#include "../core/device.h"
#include "../core/memory.h"
#include "kernel.h"

namespace octconv {

class HostProgram : public Program {
 public:
  HostProgram(PlanSpec spec, std::vector<Kernel> kernels);
  size_t runBytes() const override { return runBytes_; }
  size_t idleBytes() const override { return rooms.bytes() + boundaries.bytes(); }
  void trim() override { rooms.clear(), boundaries.clear(); }
  const std::vector<StepInfo>& steps() const override { return infos; }
  std::shared_ptr<Request> prepare() override;
  void start(std::shared_ptr<Request> request, std::function<void()> done) override;

 private:
  // What a run needs: values of the arena, scratch, the list of addresses.
  struct Room {
    Memory block;
    Run run;
    size_t size() const { return block.size(); }
  };
  // Memory of runs that have ended, for the next ones: in the steady state a run allocates nothing.
  template <class T>
  class Idle {
   public:
    T take() {
      std::lock_guard lock(mutex);
      if (items.empty()) return {};
      T item = std::move(items.back());
      items.pop_back();
      return item;
    }
    void give(T item) {
      std::lock_guard lock(mutex);
      if (items.size() < 4) items.push_back(std::move(item));  // a burst of runs does not keep its memory
    }
    void clear() {
      std::vector<T> gone;  // freed without the lock
      std::lock_guard lock(mutex);
      gone.swap(items);
    }
    size_t bytes() const {
      std::lock_guard lock(mutex);
      size_t sum = 0;
      for (const T& item : items) sum += item.size();
      return sum;
    }

   private:
    mutable std::mutex mutex;
    std::vector<T> items;
  };
  struct HostRequest;

  void go(Request& request, Crew& crew);

  const PlanSpec spec;
  const std::vector<Kernel> kernels;
  std::vector<StepInfo> infos;
  std::vector<size_t> histogramOf;  // of each value; behind the last one: none
  size_t sharedAt = 0, scratchAt = 0, scratchStride = 0, runBytes_ = 0;
  Layout boundary;  // of a request: inputs and outputs
  Idle<Room> rooms;
  Idle<Memory> boundaries;
};

}  // namespace octconv
