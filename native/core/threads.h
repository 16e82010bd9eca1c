// The one thread pool of the process. A job, such as a run, is led by one worker; idle workers join its crew and take
// tasks of its regions. With many jobs in flight each has one thread (the best throughput), with one job it has all
// that it asks for (the best latency). Nobody waits beside an idle worker: all of them sleep in one place.
//
// Why not a library: kernels want a parallel_for of spinning helpers that allocates nothing, a leader per run, crews
// that share workers, and cancelling. pthreadpool has one loop at a time and no cancelling; BS::thread_pool and
// Taskflow allocate per loop; oneTBB is a second shared library, and an empty region of 64 tasks takes 1.3 us, here 0.2
// us.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include "function_ref.h"

namespace octconv {

class Pool;

// The threads that work on one job: its leader is slot 0, helpers come and go.
class Crew {
 public:
  using Body = FunctionRef<void(int64_t task, int slot)>;
  explicit Crew(int threads, Pool* pool = nullptr)
      : threads(threads), pool(pool), taken(static_cast<size_t>(threads), false) {
    taken[0] = true;
  }

  // Called by the leader: calls body(task, slot) once for each task; returns when all are done. Once a task has thrown,
  // or `stop` is set, the tasks that no thread has begun are skipped. Throws what the first of them threw.
  // Where there are very many, blocks of 64 count as one that a thread begins.
  void parallel(int64_t tasks, Body body) { parallel(tasks, tasks, body); }
  // The first `adjacent` tasks work on data next to each other. Even slots take these from the front, odd ones
  // from the back, in each region anew: of two threads each reads mostly what it has written. All take the other tasks
  // in order. On two threads MobileNets take 2 to 4 % less time than with all tasks in order, where the cores share
  // their last cache; where they seem to have one each Oct-ResNeXt-50 takes 10 % less.
  void parallel(int64_t tasks, int64_t adjacent, Body body);
  bool stopped() const { return stop && stop->load(std::memory_order_relaxed); }

  const int threads;
  const std::atomic<bool>* stop = nullptr;  // set by the leader between regions; whoever cancels the job sets the flag

 private:
  friend class Pool;
  // One fetch_add claims a task and tells its region: a thread that comes late claims a task of the region that is open
  // now, or none. | tasks of the region 32 | taken from the front 16 | from the back, or skipped 16 |; their sum passes
  // `tasks` by one for each thread that finds none left.
  static constexpr int bits = 16;
  static constexpr uint64_t mask = (uint64_t{1} << bits) - 1;
  static uint64_t tasksLeft(uint64_t word);

  bool hasTasks() const;
  int64_t claimRest();
  bool work(int slot);  // takes tasks until none is left; a helper also leaves for a queued job. True if it did any
  bool help(int slot);  // until the job ends, a job is queued, or (true) no region has had a task for a while

  alignas(64) std::atomic<uint64_t> ticket{0};
  std::atomic<int64_t> done{0};
  const Body* body = nullptr;
  uint64_t adjacentTasks = 0;
  std::atomic<bool> failed{false}, closed{false};
  std::exception_ptr error;  // of the task that set `failed`
  std::atomic<int> helpers{0};
  Pool* const pool;
  std::vector<bool> taken;  // slots, guarded by the pool's mutex
};

namespace threads {

// Of a job.
inline constexpr int most = 1024;

// Each environment (main thread or worker_threads) retains the pool; the last release joins its threads, and gives
// true.
void retain();
bool release();

// Where jobs of both kinds wait they begin in turn, so that packing waits for one run at most, and a run for one
// packing.
enum class Kind { run, background };
// Calls job(crew) on a worker, with at most `threads` threads; the job must not throw.
void submit(int threads, std::function<void(Crew&)> job, Kind kind = Kind::run);

// Gives up an object, which goes on another thread if it was the last to hold it: to give large memory back takes
// milliseconds, and cuMemFree waits for the GPU. Where the pool has ended it goes at once.
void letGo(std::shared_ptr<const void> object) noexcept;
// Frees what letGo() was given before it returns, where memory is short.
void letGoNow();

// From now on workers are nicer than other threads: where an event loop serves requests while runs take all cores, it
// gets its turn at once. There is no way back.
void giveWay();

// Cores that this process may use: the affinity mask, at most the cgroup's CPU quota.
int hardware();

}  // namespace threads
}  // namespace octconv
