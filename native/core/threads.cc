#include "threads.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <fstream>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#if defined(__linux__)
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace octconv {

static void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Steps follow each other within microseconds, so a helper spins for about 30 of them before it sleeps.
static constexpr int spins = 1000;

// A worker that sleeps.
class Sleeper {
 public:
  void call() {
    called = true;
    wake.notify_one();
  }
  // As call(), but the kernel wakes it on another core than the caller's. Without that it does not in a virtual
  // machine: an idle core that the hypervisor has stopped counts as taken there, so a helper waits in the queue of its
  // leader's core, where it is found some milliseconds later. One run on two threads, without and with it:
  // Oct-ResNeXt-50 after a rest of 60 ms 18.1 and 14.0 ms, Oct-MobileNet V1 after 20 ms 3.9 and 2.8. It costs the
  // caller a microsecond. A leader needs none of it: whoever submits a job sleeps next, or gained nothing from it.
  void callElsewhere();
  void awake();  // the worker may run where it might before

  std::condition_variable wake;
  bool called = false;

 private:
#if defined(__linux__)
  const pid_t thread = gettid();
  pid_t caller;
  cpu_set_t allowed, others;  // cores that it might run on before it was kept from one of them, and those without it
  bool kept = false;
#endif
};

void Sleeper::callElsewhere() {
#if defined(__linux__)
  if (sched_getaffinity(thread, sizeof allowed, &allowed) == 0) {
    caller = gettid();
    others = allowed;
    CPU_CLR(static_cast<size_t>(sched_getcpu()), &others);
    kept = CPU_COUNT(&others) > 0 && sched_setaffinity(thread, sizeof others, &others) == 0;
  }
#endif
  call();
}

// A mask that somebody else has set meanwhile stays: it is another one, or the caller has it too. All cores of the
// cpuset are set as all that there are: a thread with a mask of its own would not get those that are added to the
// cpuset later.
void Sleeper::awake() {
#if defined(__linux__)
  const auto get = [](cpu_set_t& cores, pid_t of = 0) { return sched_getaffinity(of, sizeof cores, &cores) == 0; };
  cpu_set_t wanted, callers, every, cpuset;
  if (!kept || !get(wanted)) return;
  if (!CPU_EQUAL(&wanted, &others)) {
    // It may be what a smaller cpuset has left of `others`: that may have the core that the worker was kept from.
    CPU_XOR(&others, &allowed, &others);
    CPU_OR(&others, &others, &wanted);
  } else if (!get(callers, caller) || !CPU_EQUAL(&callers, &others)) {
    wanted = others = allowed;
  }
  std::memset(&every, -1, sizeof every);
  if (sched_setaffinity(0, sizeof every, &every) != 0 || !get(cpuset)) return;
  if (!CPU_EQUAL(&wanted, &cpuset) && !CPU_EQUAL(&others, &cpuset)) sched_setaffinity(0, sizeof wanted, &wanted);
#endif
}

class Pool {
 public:
  ~Pool();
  void submit(int threads, std::function<void(Crew&)> job, threads::Kind kind);
  void call(int64_t helpers);  // wakes so many workers, or as many as are idle

  // Read without the mutex, written with it.
  alignas(64) std::atomic<int64_t> queued{0};  // jobs that wait for a leader
  std::atomic<int64_t> idle{0};                // sleepers

 private:
  using Clock = std::chrono::steady_clock;
  using Lock = std::unique_lock<std::mutex>;
  using Worker = std::list<std::thread>::iterator;
  struct Job {
    std::shared_ptr<Crew> crew;
    std::function<void(Crew&)> run;
  };

  void addWorker();
  static void becomeNicer(int& now);
  void work(Worker self);
  bool sleep(Lock& lock);
  Job next();
  void lead(Job& job, Lock& lock);
  bool help(Crew& crew, Lock& lock);
  std::shared_ptr<Crew> crewToHelp(bool withTasks) const;
  void wakeUp(int64_t count, void (Sleeper::*call)());
  bool isWide(const Crew& crew) const { return static_cast<size_t>(crew.threads) > usual; }
  void forget(const Crew& crew);

  std::mutex mutex;
  std::vector<Sleeper*> sleepers;  // that were not called; the last one to fall asleep is called first
  std::deque<Job> queues[2];       // by Kind
  bool runsTurn = true;
  std::vector<std::shared_ptr<Crew>> crews;  // of jobs that are led and want helpers
  std::list<std::thread> workers;
  std::thread ended;  // the last worker that ended before the pool
  bool stop = false;

  // As many workers as the hardware has threads stay. A wide job wants more; they end a while after the last one.
  static constexpr std::chrono::seconds patience{1};
  const size_t usual = static_cast<size_t>(threads::hardware());
  size_t wanted = usual;
  int64_t wideJobs = 0;
  Clock::time_point lastWide = Clock::now();
};

uint64_t Crew::tasksLeft(uint64_t word) {
  const uint64_t tasks = word >> 2 * bits, taken = (word >> bits & mask) + (word & mask);
  return taken < tasks ? tasks - taken : 0;
}

bool Crew::hasTasks() const { return tasksLeft(ticket.load()) > 0; }

// Called with a task claimed and not yet counted, so that the region is still open.
int64_t Crew::claimRest() {
  uint64_t word = ticket.load();
  while (tasksLeft(word) > 0 && !ticket.compare_exchange_weak(word, word + tasksLeft(word))) {}
  return static_cast<int64_t>(tasksLeft(word));
}

bool Crew::work(int slot) {
  const bool back = slot % 2 == 1;
  const uint64_t one = back ? 1 : uint64_t{1} << bits;
  int64_t claimed = 0;
  uint64_t word = ticket.load(std::memory_order_acquire);
  while (tasksLeft(word) > 0 && (slot == 0 || pool->queued.load(std::memory_order_relaxed) == 0)) {
    word = ticket.fetch_add(one, std::memory_order_acq_rel);
    if (tasksLeft(word) == 0) break;
    const uint64_t fromFront = word >> bits & mask, fromBack = word & mask, taken = fromFront + fromBack;
    const uint64_t task = taken >= adjacentTasks ? taken : back ? adjacentTasks - 1 - fromBack : fromFront;
    claimed++, word += one;
    if (stopped() || failed.load(std::memory_order_relaxed)) {
      claimed += claimRest();
      break;
    }
    try {
      (*body)(static_cast<int64_t>(task), slot);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
  // The region stays open until all that was claimed is counted, so once per thread is enough.
  if (claimed > 0) done.fetch_add(claimed, std::memory_order_acq_rel);
  return claimed > 0;
}

bool Crew::help(int slot) {
  for (int waited = 0; waited < spins; waited++) {
    if (closed.load() || pool->queued.load(std::memory_order_relaxed) > 0) return false;
    if (work(slot))
      waited = 0;
    else
      pause();
  }
  return true;
}

void Crew::parallel(int64_t tasks, int64_t adjacent, Body run) {
  constexpr int64_t most = int64_t{1} << (bits - 1), block = 64;
  static_assert(most + threads::most <= static_cast<int64_t>(mask));  // claims that find no task left
  if (tasks > most)
    return parallel((tasks + block - 1) / block, [&](int64_t first, int slot) {
      for (int64_t i = first * block;
           i < std::min(tasks, (first + 1) * block) && !stopped() && !failed.load(std::memory_order_relaxed); i++)
        run(i, slot);
    });
  if (threads == 1 || tasks < 2) {
    for (int64_t i = 0; i < tasks && !stopped(); i++) run(i, 0);
    return;
  }
  if (stopped()) return;
  body = &run;
  adjacentTasks = static_cast<uint64_t>(std::min(adjacent, tasks));
  done.store(0, std::memory_order_relaxed);
  // Sequentially consistent, as are the loads below and a worker's stores to `helpers` and `idle` before it looks for
  // tasks and sleeps: either this thread sees that it is to be called, or the worker sees the region.
  ticket.store(static_cast<uint64_t>(tasks) << 2 * bits);
  const int64_t missing = std::min<int64_t>(threads, tasks) - 1 - helpers.load();
  if (missing > 0 && pool && pool->idle.load() > 0) pool->call(missing);
  work(0);
  for (int waited = 0; done.load(std::memory_order_acquire) != tasks; waited++) {
    if (waited < spins)
      pause();
    else
      std::this_thread::yield();
  }
  if (failed.load(std::memory_order_relaxed)) {
    failed.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(error, nullptr));
  }
}

Pool::~Pool() {
  {
    std::lock_guard lock(mutex);
    stop = true;
    wakeUp(idle.load(), &Sleeper::call);
  }
  for (std::thread& worker : workers) worker.join();
  if (ended.joinable()) ended.join();
}

void Pool::submit(int threads, std::function<void(Crew&)> job, threads::Kind kind) {
  auto crew = std::make_shared<Crew>(std::max(1, threads), this);
  std::lock_guard lock(mutex);
  if (workers.empty()) addWorker();  // it makes the next one, and so on; not even one is an error of the caller
  if (isWide(*crew)) wideJobs++, wanted = std::max(wanted, static_cast<size_t>(threads));
  queues[static_cast<int>(kind)].push_back({std::move(crew), std::move(job)});
  queued.fetch_add(1);
  wakeUp(1, &Sleeper::call);
}

void Pool::call(int64_t helpers) {
  std::lock_guard lock(mutex);
  wakeUp(helpers, &Sleeper::callElsewhere);
}

void Pool::wakeUp(int64_t count, void (Sleeper::*call)()) {
  for (; count > 0 && !sleepers.empty(); count--) {
    (sleepers.back()->*call)();
    sleepers.pop_back();
    idle.fetch_sub(1);
  }
}

void Pool::forget(const Crew& crew) {
  if (isWide(crew)) wideJobs--, lastWide = Clock::now();
}

void Pool::addWorker() {
  const Worker self = workers.emplace(workers.end());
  try {
    sleepers.reserve(workers.size());
    *self = std::thread([this, self] { work(self); });
  } catch (...) {
    workers.erase(self);
    throw;
  }
}

// What threads::giveWay() asked for: the nice value of workers, or `asBefore`. A new thread has that of the one that
// made it, so it is absolute. The service without it: 96 pictures/s at saturation, 81 beyond, p99 of the event loop 6.2
// ms; with 5: 102, 88 and 4.9 ms; 10 and 19 were no better.
static constexpr int nicer = 5, asBefore = 100;
static std::atomic<int> wantedNice{asBefore};

// `now` is a variable of the caller: of a thread_local one, in an addon, the search for leaks of ASan 12 dies.
void Pool::becomeNicer([[maybe_unused]] int& now) {
#if defined(__linux__)  // where a thread has a nice value of its own
  if (const int wanted = wantedNice.load(std::memory_order_relaxed); now != wanted) {
    now = wanted;
    setpriority(PRIO_PROCESS, 0, wanted);  // as it is, if that is refused
  }
#endif
}

void Pool::work(Worker self) {
  Lock lock(mutex);
  int niceness = asBefore;
  bool foundNothing = false;  // this worker has just left a crew that had nothing to do
  while (true) {
    becomeNicer(niceness);
    if (workers.size() < wanted && !stop) try {
        addWorker();
      } catch (const std::exception&) { wanted = workers.size(); }  // fewer are enough
    if (queued.load() > 0) {
      Job job = next();
      lead(job, lock);
      foundNothing = false;
    } else if (const auto crew = crewToHelp(foundNothing)) {
      foundNothing = help(*crew, lock);
    } else if (stop) {
      return;
    } else if (sleep(lock)) {
      foundNothing = false;
    } else {
      std::thread before = std::exchange(ended, std::move(*self));
      workers.erase(self);
      lock.unlock();
      if (before.joinable()) before.join();
      return;
    }
  }
}

// Returns when the worker is called; false if there is one too many.
bool Pool::sleep(Lock& lock) {
  Sleeper self;
  sleepers.push_back(&self);
  idle.fetch_add(1);
  const auto leave = [&] {
    sleepers.erase(std::find(sleepers.begin(), sleepers.end(), &self));
    idle.fetch_sub(1);
  };
  if (crewToHelp(true)) {  // a region was opened before this worker was seen to be idle
    leave();
    return true;
  }
  while (!self.called) {
    if (workers.size() <= usual) {
      self.wake.wait(lock);
      continue;
    }
    const auto now = Clock::now();
    if (wideJobs > 0) lastWide = now;
    if (now >= lastWide + patience) {
      wanted = usual;
      leave();
      return false;
    }
    self.wake.wait_until(lock, lastWide + patience);
  }
  lock.unlock();
  self.awake();
  lock.lock();
  return true;
}

Pool::Job Pool::next() {
  auto &runs = queues[static_cast<int>(threads::Kind::run)],
       &background = queues[static_cast<int>(threads::Kind::background)];
  auto& queue = background.empty() || (runsTurn && !runs.empty()) ? runs : background;
  runsTurn = &queue == &background;
  Job job = std::move(queue.front());
  queue.pop_front();
  queued.fetch_sub(1);
  return job;
}

void Pool::lead(Job& job, Lock& lock) {
  if (job.crew->threads > 1) {
    crews.push_back(job.crew);
    wakeUp(job.crew->threads - 1, &Sleeper::callElsewhere);  // they are awake when the first region opens
  }
  lock.unlock();
  job.run(*job.crew);
  job.run = nullptr;  // what it holds goes before the lock is taken
  job.crew->closed.store(true);
  lock.lock();
  if (job.crew->threads > 1) crews.erase(std::find(crews.begin(), crews.end(), job.crew));
  forget(*job.crew);
}

// True if it left because the crew had nothing to do.
bool Pool::help(Crew& crew, Lock& lock) {
  const auto place = std::find(crew.taken.begin(), crew.taken.end(), false);
  *place = true;
  crew.helpers.fetch_add(1);
  lock.unlock();
  const bool foundNothing = crew.help(static_cast<int>(place - crew.taken.begin()));
  lock.lock();
  crew.helpers.fetch_sub(1);
  *place = false;
  return foundNothing;
}

// Of the crews that have a place, that with the fewest helpers.
std::shared_ptr<Crew> Pool::crewToHelp(bool withTasks) const {
  std::shared_ptr<Crew> best;
  for (const auto& crew : crews) {
    const int helpers = crew->helpers.load();
    if (crew->closed.load() || helpers >= crew->threads - 1 || (withTasks && !crew->hasTasks())) continue;
    if (!best || helpers < best->helpers.load()) best = crew;
  }
  return best;
}

namespace threads {

// Never destroyed by the end of the process: threads must not be joined by a static destructor.
static std::mutex& guard() {
  static auto* mutex = new std::mutex;
  return *mutex;
}
static Pool* instance = nullptr;
static int environments = 0;

void retain() {
  std::lock_guard lock(guard());
  if (environments++ == 0) instance = new Pool;
}

bool release() {
  std::lock_guard lock(guard());
  if (--environments > 0) return false;
  delete instance;
  instance = nullptr;
  letGoNow();  // where the pool has ended before its job
  return true;
}

// The pool lives as long as the caller's environment.
static Pool& current() {
  std::lock_guard lock(guard());
  return *instance;
}

void submit(int threads, std::function<void(Crew&)> job, Kind kind) { current().submit(threads, std::move(job), kind); }

// Never destroyed, as above.
struct Waiting {
  std::mutex mutex, letting;  // `letting` is held while objects go, so that letGoNow() returns after them
  std::vector<std::shared_ptr<const void>> objects;
};
static Waiting& waiting() {
  static auto* all = new Waiting;
  return *all;
}

void letGo(std::shared_ptr<const void> object) noexcept {
  try {
    {
      std::lock_guard lock(waiting().mutex);
      waiting().objects.push_back(std::move(object));
      if (waiting().objects.size() > 1) return;  // the job of the first one takes all
    }
    std::lock_guard lock(guard());
    if (instance)
      return instance->submit(
          1, [](Crew&) { letGoNow(); }, Kind::background);
  } catch (const std::exception&) {}  // no memory, or no thread could be started
  letGoNow();
}

void letGoNow() {
  std::lock_guard letting(waiting().letting);
  std::vector<std::shared_ptr<const void>> objects;
  std::lock_guard lock(waiting().mutex);
  objects.swap(waiting().objects);
}

void giveWay() {
#if defined(__linux__)
  int as = asBefore;
  wantedNice.compare_exchange_strong(as, getpriority(PRIO_PROCESS, 0) + nicer);
#endif
}

// cgroup v2 writes "quota period" (or "max period") to cpu.max, v1 has a file for each (-1 = no limit).
static double cgroupCores() {
  std::string quota;
  double period = 0;
  if (std::ifstream file("/sys/fs/cgroup/cpu.max"); file >> quota >> period) {
    if (quota != "max" && period > 0) return std::atof(quota.c_str()) / period;
  } else {
    double microseconds = 0;
    std::ifstream q("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), p("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (q >> microseconds && p >> period && microseconds > 0 && period > 0) return microseconds / period;
  }
  return INFINITY;
}

int hardware() {
  static const int count = [] {
    int cores = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
#endif
    const double quota = std::ceil(cgroupCores());
    return std::max(1, quota < cores ? static_cast<int>(quota) : cores);
  }();
  return count;
}

}  // namespace threads
}  // namespace octconv
