// Runs on a GPU, in the order in which they were started. Copies of one run go beside the kernels of another.
#pragma once
#include <deque>
#include <memory>
#include <mutex>

namespace octconv::cuda {

class Queue {
 public:
  struct Job {
    virtual ~Job() = default;
    // Gives the GPU its work; never waits for it. False if there is no room for it beside others; it is called again
    // when it is alone.
    virtual bool begin(bool alone) = 0;
    virtual void finish() = 0;  // waits for the GPU, and tells the caller; called once, whether it began well or not
  };
  void add(std::unique_ptr<Job> job);

 private:
  static constexpr size_t together = 2;  // jobs that have begun
  void submit();
  void turn();
  std::unique_ptr<Job> next();

  std::mutex mutex;
  std::deque<std::unique_ptr<Job>> waiting;
  bool draining = false;  // by the library's threads: one at a time waits for the GPU while there are jobs

  std::deque<std::unique_ptr<Job>> begun;  // of the thread whose turn it is
};

}  // namespace octconv::cuda
