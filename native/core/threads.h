// The one thread pool of the process. A run is led by one worker; idle workers join its crew and take tasks of its
// steps. A worker that leads or helps leaves nothing to wait for: with many runs in flight each has one thread (the
// best throughput), with one run it has all it asked for (the best latency).
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "function_ref.h"

namespace octconv {

// The threads that work on one run: its leader is slot 0, helpers come and go.
class Crew {
 public:
  using Body = FunctionRef<void(int64_t task, int slot)>;
  explicit Crew(int threads) : threads(threads), taken(static_cast<size_t>(threads), false) { taken[0] = true; }

  // Calls body(task, slot) once for each task; returns when all are done.
  void parallel(int64_t tasks, Body body);

  const int threads;

 private:
  friend class Pool;
  // One word says which region is open, how many tasks it has and which is next, so that a helper that comes late
  // can never take a task of a region it did not see: | region 16 | tasks 24 | next 24 |.
  static constexpr int bits = 24;
  static constexpr uint64_t mask = (uint64_t{1} << bits) - 1;

  bool work(int slot);                                          // takes tasks until none is left; true if it did any
  void help(int slot, const std::atomic<int64_t>& queuedRuns);  // until the run ends, or another run waits for a leader
  void close();

  std::atomic<uint64_t> ticket{0};
  std::atomic<int64_t> done{0};
  const Body* body = nullptr;
  std::atomic<uint32_t> generation{0}, sleepers{0};
  std::atomic<bool> closed{false};
  std::vector<bool> taken;  // slots, guarded by the pool's mutex
};

namespace threads {

// Each environment (main thread or worker_threads) retains the pool; the last release joins its threads.
void retain();
void release();
// Runs job(crew) on a worker; at most `threads` of them work on it.
void submit(int threads, std::function<void(Crew&)> job);
// Calls body(task) once for each task, on the calling thread and on workers that are idle: it waits for no run. Throws
// what one of them threw.
void parallel(int64_t tasks, const std::function<void(int64_t task)>& body);
// Cores that this process may use: the affinity mask, at most the cgroup's CPU quota.
int hardware();

}  // namespace threads
}  // namespace octconv
