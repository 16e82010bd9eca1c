#include "threads.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <exception>
#include <fstream>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#if defined(__linux__)
#include <sched.h>
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

bool Crew::work(int slot) {
  bool any = false;
  uint64_t word = ticket.load(std::memory_order_acquire);
  while ((word & mask) < (word >> bits & mask)) {
    word = ticket.fetch_add(1, std::memory_order_acq_rel);
    const uint64_t task = word & mask, tasks = word >> bits & mask;
    if (task >= tasks) break;
    (*body)(static_cast<int64_t>(task), slot);
    done.fetch_add(1, std::memory_order_acq_rel);
    any = true;
    word++;
  }
  return any;
}

void Crew::parallel(int64_t tasks, Body run) {
  const int64_t most = static_cast<int64_t>(mask / 2);  // leaves room for the tickets drawn in vain
  for (int64_t first = 0; first < tasks; first += most) {
    const int64_t count = std::min(most, tasks - first);
    if (threads == 1 || count == 1) {
      for (int64_t i = 0; i < count; i++) run(first + i, 0);
      continue;
    }
    const auto later = [&](int64_t task, int slot) { run(first + task, slot); };
    const Body shifted = later;
    body = first == 0 ? &run : &shifted;
    done.store(0, std::memory_order_relaxed);
    const uint64_t region = (ticket.load(std::memory_order_relaxed) >> 2 * bits) + 1;
    ticket.store(region << 2 * bits | static_cast<uint64_t>(count) << bits, std::memory_order_release);
    generation.fetch_add(1);
    if (sleepers.load() > 0) generation.notify_all();
    work(0);
    for (int waited = 0; done.load(std::memory_order_acquire) != count; waited++) {
      if (waited < spins)
        pause();
      else
        std::this_thread::yield();
    }
  }
}

void Crew::help(int slot, const std::atomic<int64_t>& queuedRuns) {
  int waited = 0;
  while (true) {
    const uint32_t seen = generation.load();
    if (work(slot)) waited = 0;
    if (closed.load() || queuedRuns.load(std::memory_order_relaxed) > 0) return;
    if (++waited < spins) {
      pause();
    } else {
      sleepers.fetch_add(1);
      generation.wait(seen);
      sleepers.fetch_sub(1);
      waited = 0;
    }
  }
}

void Crew::close() {
  closed.store(true);
  generation.fetch_add(1);
  generation.notify_all();
}

class Pool {
 public:
  void submit(int threads, std::function<void(Crew&)> job) {
    std::unique_lock lock(mutex);
    grow(threads);
    queue.push_back({std::max(1, threads), std::move(job)});
    queuedRuns.store(static_cast<int64_t>(queue.size()));
    lock.unlock();
    wake.notify_one();
  }

  // The calling thread leads; workers that are idle help.
  void here(int threads, std::function<void(Crew&)> job) {
    std::unique_lock lock(mutex);
    grow(threads);
    Job mine{std::max(1, threads), std::move(job)};
    lead(mine, lock);
  }

  ~Pool() {
    {
      std::lock_guard lock(mutex);
      stop = true;
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

 private:
  struct Job {
    int threads;
    std::function<void(Crew&)> run;
  };

  void grow(int threads) {
    const size_t wanted = static_cast<size_t>(std::max(threads, threads::hardware()));
    try {
      while (workers.size() < wanted) workers.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      if (workers.empty()) throw;  // fewer threads than wanted are enough
    }
  }

  void work() {
    std::unique_lock lock(mutex);
    while (true) {
      if (!queue.empty()) {
        Job job = std::move(queue.front());
        queue.pop_front();
        queuedRuns.store(static_cast<int64_t>(queue.size()));
        lead(job, lock);
      } else if (const auto [crew, slot] = openSlot(); crew) {
        crew->taken[static_cast<size_t>(slot)] = true;
        lock.unlock();
        crew->help(slot, queuedRuns);
        lock.lock();
        crew->taken[static_cast<size_t>(slot)] = false;
      } else if (stop) {
        return;
      } else {
        wake.wait(lock);
      }
    }
  }

  void lead(Job& job, std::unique_lock<std::mutex>& lock) {
    const auto crew = std::make_shared<Crew>(job.threads);
    if (job.threads > 1) crews.push_back(crew);
    lock.unlock();
    if (job.threads > 1) wake.notify_all();
    job.run(*crew);
    job.run = nullptr;  // what it holds goes before the lock is taken
    crew->close();
    lock.lock();
    if (job.threads > 1) crews.erase(std::find(crews.begin(), crews.end(), crew));
  }

  std::pair<std::shared_ptr<Crew>, int> openSlot() const {
    for (const auto& crew : crews) {
      const auto free = std::find(crew->taken.begin(), crew->taken.end(), false);
      if (!crew->closed.load() && free != crew->taken.end())
        return {crew, static_cast<int>(free - crew->taken.begin())};
    }
    return {nullptr, 0};
  }

  std::mutex mutex;
  std::condition_variable wake;
  std::deque<Job> queue;
  std::atomic<int64_t> queuedRuns{0};
  std::vector<std::shared_ptr<Crew>> crews;
  std::vector<std::thread> workers;
  bool stop = false;
};

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

void release() {
  std::lock_guard lock(guard());
  if (--environments > 0) return;
  delete instance;
  instance = nullptr;
}

void submit(int threads, std::function<void(Crew&)> job) {
  std::lock_guard lock(guard());
  instance->submit(threads, std::move(job));
}

void parallel(int64_t tasks, const std::function<void(int64_t)>& body) {
  Pool* pool = nullptr;
  {
    std::lock_guard lock(guard());
    pool = instance;  // it lives as long as the caller's environment
  }
  std::mutex mutex;
  std::exception_ptr error;
  pool->here(hardware(), [&](Crew& crew) {
    crew.parallel(tasks, [&](int64_t task, int) {
      try {
        body(task);
      } catch (...) {
        std::lock_guard lock(mutex);
        error = std::current_exception();
      }
    });
  });
  if (error) std::rethrow_exception(error);
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
