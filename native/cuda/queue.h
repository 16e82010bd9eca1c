// Runs on a GPU, in the order in which they were started. Copies of one run go beside the kernels of another.
#pragma once
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

namespace octconv::cuda {

class Queue {
 public:
  struct Job {
    virtual ~Job() = default;
    virtual void begin() = 0;   // gives the GPU its work; never waits for it
    virtual void finish() = 0;  // waits for the GPU, and tells the caller; called once, whether it began well or not
  };
  void add(std::unique_ptr<Job> job);

 private:
  static constexpr size_t together = 2;  // jobs that have begun
  void drain();
  std::mutex mutex;
  std::deque<std::unique_ptr<Job>> waiting;
  bool draining = false;  // by a thread of the library, which waits for the GPU while there are jobs
};

}  // namespace octconv::cuda
