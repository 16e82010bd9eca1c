// Tests of the thread pool through its own interface: `threads-test NAME` runs one, without a name it lists them, see
// test/threads.test.ts. None of them measures time; one that waits for ever is ended by its alarm.
#include "core/threads.h"

#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

using namespace octconv;

static std::atomic<int64_t> allocations{0};
[[gnu::noinline]] void* operator new(size_t bytes) {
  allocations++;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

template <class Condition>
void until(Condition condition) {
  while (!condition()) std::this_thread::yield();
}

// A job that can be waited for.
std::future<void> start(int threads, std::function<void(Crew&)> job, threads::Kind kind = threads::Kind::run) {
  const auto done = std::make_shared<std::promise<void>>();
  threads::submit(
      threads, [done, job](Crew& crew) { job(crew), done->set_value(); }, kind);
  return done->get_future();
}

// Keeps workers busy until it is released.
class Blocked {
 public:
  explicit Blocked(int workers) {
    for (int i = 0; i < workers; i++)
      jobs.push_back(start(1, [this](Crew&) { begun++, until([this] { return released.load() > 0; }), released--; }));
    until([&] { return begun == workers; });
  }
  ~Blocked() {
    release(static_cast<int>(jobs.size()));
    for (auto& job : jobs) job.wait();
  }
  void release(int workers) { released += workers; }

 private:
  std::atomic<int> begun{0}, released{0};
  std::vector<std::future<void>> jobs;
};

int workers(int atLeast) { return std::max(atLeast, threads::hardware()); }

void helperThrows() {
  start(4, [](Crew& crew) {
    constexpr int64_t tasks = 1'000'000;
    std::atomic<bool> thrown{false};
    std::atomic<int64_t> begun{0};
    std::string caught;
    try {
      crew.parallel(tasks, [&](int64_t, int slot) {
        begun++;
        if (slot != 0 && !thrown.exchange(true)) throw std::runtime_error("of a helper");
        until([&] { return thrown.load(); });
        std::this_thread::yield();
      });
    } catch (const std::runtime_error& error) { caught = error.what(); }
    CHECK(caught == "of a helper");
    CHECK(begun < tasks);
    std::atomic<int64_t> next{0};
    crew.parallel(1000, [&](int64_t, int) { next++; });
    CHECK(next == 1000);
  }).wait();
}

// Also within the blocks that stand for tasks there.
void throwsAmongMany() {
  start(2, [](Crew& crew) {
    std::atomic<bool> thrown{false};
    std::atomic<int64_t> after{0};
    bool caught = false;
    try {
      crew.parallel(100'000'000, [&](int64_t, int slot) {
        if (thrown) {
          after++;
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        } else if (slot != 0) {
          thrown = true;
          throw std::runtime_error("of a helper");
        }
      });
    } catch (const std::runtime_error&) { caught = true; }
    CHECK(caught);
    CHECK(after < 1000);
  }).wait();
}

void leaderThrows() {
  start(4, [](Crew& crew) {
    std::atomic<int> inBody{0};
    std::atomic<bool> thrown{false};
    bool caught = false;
    try {
      crew.parallel(1000, [&](int64_t, int slot) {
        if (slot == 0) {
          until([&] { return inBody > 0; });
          thrown = true;
          throw std::runtime_error("of the leader");
        }
        inBody++;
        until([&] { return thrown.load(); });
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        inBody--;
      });
    } catch (const std::runtime_error&) { caught = true; }
    CHECK(caught);
    CHECK(inBody == 0);
  }).wait();
}

void stops() {
  for (const int threads : {1, 2, 4})
    start(threads, [&](Crew& crew) {
      std::atomic<bool> stop{false};
      std::atomic<int64_t> begun{0};
      crew.stop = &stop;
      crew.parallel(2'000'000'000, [&](int64_t task, int) {
        begun++;
        if (task == 10) stop = true;
        if (task > 10) until([&] { return stop.load(); });
      });
      CHECK(begun >= 11);
      CHECK(begun <= 10 + threads);
      const int64_t before = begun;
      crew.parallel(1000, [&](int64_t, int) { begun++; });
      CHECK(begun == before);
    }).wait();
}

// More tasks than one region counts.
void manyTasks() {
  start(2, [](Crew& crew) {
    std::vector<std::atomic<int>> times(100'003);
    crew.parallel(100'003, [&](int64_t task, int) { times[static_cast<size_t>(task)]++; });
    for (const auto& count : times) CHECK(count == 1);

    std::atomic<bool> stop{false};
    std::vector<int64_t> seen[2];
    std::atomic<int64_t> begun{0};
    crew.stop = &stop;
    constexpr int64_t tasks = (int64_t{1} << 31) + 5;
    crew.parallel(tasks, [&](int64_t task, int slot) {
      seen[slot].push_back(task);
      if (++begun == 50'000) stop = true;
    });
    std::set<int64_t> all;
    for (const auto& part : seen) all.insert(part.begin(), part.end());
    CHECK(static_cast<int64_t>(all.size()) == begun);
    CHECK(*all.begin() >= 0 && *all.rbegin() < tasks);
  }).wait();
}

// The leader is in its first task while the helper does all others.
void helperBeginsAtTheEnd() {
  start(2, [](Crew& crew) {
    std::vector<int64_t> helpers;
    std::atomic<bool> led{false};
    std::atomic<int> done{0};
    crew.parallel(10, 6, [&](int64_t task, int slot) {
      if (slot == 0) {
        CHECK(task == 0);
        led = true;
        until([&] { return done == 9; });
      } else {
        until([&] { return led.load(); });
        helpers.push_back(task);
        done++;
      }
    });
    CHECK((helpers == std::vector<int64_t>{5, 4, 3, 2, 1, 6, 7, 8, 9}));
  }).wait();
}

// The leader works by itself and waits for the other run, so that only its helper, who sleeps, can take that.
void idleHelperTakesQueuedRun() {
  Blocked others(workers(2) - 2);
  start(2, [](Crew& crew) {
    std::atomic<bool> helped{false};
    crew.parallel(2, [&](int64_t, int slot) { slot ? void(helped = true) : until([&] { return helped.load(); }); });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    start(1, [](Crew&) {}).wait();
  }).wait();
}

// A helper leaves a region that has tasks left, for a run that has no worker.
void busyHelperTakesQueuedRun() {
  Blocked others(workers(2) - 2);
  start(2, [](Crew& crew) {
    std::atomic<bool> queued{false}, ran{false};
    std::atomic<int64_t> helped{0};
    std::future<void> other;
    crew.stop = &ran;
    crew.parallel(1'000'000'000, [&](int64_t, int slot) {
      if (slot != 0) {
        helped++;
      } else if (!queued.exchange(true)) {
        until([&] { return helped > 0; });
        other = start(1, [&](Crew&) { ran = true; });
        until([&] { return ran.load(); });
      }
    });
    other.wait();
    CHECK(helped < 999'999'999);
  }).wait();
}

// Two runs go on at the same time: each waits for the other one's next region.
void runsGoOnTogether() {
  Blocked others(workers(2) - 2);
  std::atomic<int> progress[2] = {0, 0};
  std::vector<std::future<void>> runs;
  for (int mine = 0; mine < 2; mine++)
    runs.push_back(start(2, [&progress, mine](Crew& crew) {
      for (int region = 1; region <= 200; region++) {
        crew.parallel(8, [](int64_t, int) {});
        progress[mine] = region;
        until([&] { return progress[1 - mine] >= region; });
      }
    }));
  for (auto& run : runs) run.wait();
}

void takesTurns() {
  Blocked all(workers(1));
  std::string order;
  std::vector<std::future<void>> jobs;
  for (const char name : std::string("abc")) jobs.push_back(start(1, [&order, name](Crew&) { order += name; }));
  for (const char name : std::string("xyz"))
    jobs.push_back(start(
        1, [&order, name](Crew&) { order += name; }, threads::Kind::background));
  all.release(1);  // one worker takes them all
  for (auto& job : jobs) job.wait();
  CHECK(order == "axbycz" || order == "xaybzc");
}

int64_t threadsOfProcess() {
  int64_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) count += !entry.path().empty();
  return count;
}

void surplusWorkersEnd() {
  const int many = threads::hardware() + 40;
  start(1, [](Crew&) {}).wait();
  const int64_t others = 1;  // main; a sanitizer may have a thread of its own
  for (int round = 0; round < 2; round++) {
    start(many, [&](Crew& crew) {
      std::atomic<int> here{0};
      crew.parallel(many, [&](int64_t, int) { here++, until([&] { return here == many; }); });
    }).wait();
    CHECK(threadsOfProcess() >= many + others);
    until([&] { return threadsOfProcess() <= threads::hardware() + others + 1; });
  }
  start(2, [](Crew& crew) {
    std::atomic<int> here{0};
    if (threads::hardware() > 1) crew.parallel(2, [&](int64_t, int) { here++, until([&] { return here == 2; }); });
  }).wait();
}

// They are kept from their leader's core while they wake up; where they wake is the kernel's affair.
void helpersMayRunAnywhere() {
#if defined(__linux__)
  const auto allowed = [] {
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
    return set;
  };
  const cpu_set_t all = allowed();
  const int count = workers(2);
  for (int i = 0; i < 20; i++) {
    start(count, [&](Crew& crew) {
      std::atomic<int> inside{0};
      crew.parallel(count, [&](int64_t, int) {
        const cpu_set_t mine = allowed();
        CHECK(CPU_EQUAL(&mine, &all));
        inside++;
        until([&] { return inside == count; });  // so that each task has a thread of its own
      });
    }).wait();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // they fall asleep
  }
#endif
}

void regionsAllocateNothing() {
  start(4, [](Crew& crew) {
    std::atomic<int64_t> sum{0};
    const auto region = [&] { crew.parallel(64, [&](int64_t task, int) { sum += task; }); };
    std::atomic<int> here{0};
    crew.parallel(4, [&](int64_t, int) { here++, until([&] { return here == 4; }); });  // all workers are there
    const int64_t before = allocations;
    for (int i = 0; i < 1000; i++) {
      region();
      if (i % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // helpers sleep and are called
    }
    CHECK(allocations == before);
    CHECK(sum == 1000 * 64 * 63 / 2);
  }).wait();
}

// Jobs of all kinds at once: every task of a region runs once, and every job ends.
void stress() {
  std::atomic<int64_t> ended{0}, submitted{0};
  const auto lane = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < 300; i++) {
      const int threads = 1 + static_cast<int>(random() % 6);
      const auto kind = random() % 4 ? threads::Kind::run : threads::Kind::background;
      const unsigned own = random();
      const auto stop = std::make_shared<std::atomic<bool>>(false);
      submitted++;
      threads::submit(
          threads,
          [&ended, own, stop](Crew& crew) {
            std::mt19937 random(own);
            crew.stop = stop.get();
            std::vector<std::atomic<int>> seen(200);
            for (int region = 0; region < 20; region++) {
              const int64_t tasks = random() % 200, bad = random() % 800, adjacent = random() % (tasks + 1);
              for (auto& count : seen) count = 0;
              bool threw = false;
              try {
                crew.parallel(tasks, adjacent, [&](int64_t task, int) {
                  seen[static_cast<size_t>(task)]++;
                  if (task == bad) throw std::runtime_error("stress");
                });
              } catch (const std::runtime_error&) { threw = true; }
              const bool whole = !threw && !crew.stopped();
              if (!crew.stopped()) CHECK(threw == (bad < tasks));
              for (int64_t task = 0; task < 200; task++) {
                const int count = seen[static_cast<size_t>(task)];
                CHECK(count <= (task < tasks ? 1 : 0));
                if (whole && task < tasks) CHECK(count == 1);
              }
              if (random() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
            }
            ended++;
          },
          kind);
      if (random() % 8 == 0) *stop = true;
      if (random() % 16 == 0) until([&] { return submitted - ended < 8; });
    }
  };
  std::vector<std::thread> lanes;
  for (unsigned seed = 1; seed <= 3; seed++)
    lanes.emplace_back([&, seed] {
      threads::retain();
      lane(seed);
      threads::release();
    });
  for (std::thread& thread : lanes) thread.join();
  until([&] { return ended == submitted; });
}

const std::map<std::string, void (*)()> tests = {
    {"a task that throws on a helper ends its region, not the process", helperThrows},
    {"a task that throws on the leader waits for the helpers", leaderThrows},
    {"a stop is seen between tasks", stops},
    {"a region may have more tasks than its counter counts", manyTasks},
    {"an idle helper takes a queued run", idleHelperTakesQueuedRun},
    {"a busy helper takes a queued run after its task", busyHelperTakesQueuedRun},
    {"runs go on together", runsGoOnTogether},
    {"runs and background work begin in turn", takesTurns},
    {"threads beyond the hardware's end", surplusWorkersEnd},
    {"a helper begins at the last of the adjacent tasks", helperBeginsAtTheEnd},
    {"a task that throws ends a region of very many", throwsAmongMany},
    {"helpers may run on all cores of the process", helpersMayRunAnywhere},
    {"regions allocate nothing", regionsAllocateNothing},
    {"every task runs once under stress", stress},
};

}  // namespace

int main(int count, char** arguments) {
  const auto test = tests.find(count == 2 ? arguments[1] : "");
  if (test == tests.end()) {
    for (const auto& [name, function] : tests) std::printf("%s\n", name.c_str());
    return count == 1 ? 0 : 2;
  }
  alarm(120);
  threads::retain();
  test->second();
  threads::release();
}
