#include "queue.h"

#include "../core/threads.h"

namespace octconv::cuda {

void Queue::add(std::unique_ptr<Job> job) {
  {
    std::lock_guard lock(mutex);
    waiting.push_back(std::move(job));
    if (draining) return;
    draining = true;
  }
  threads::submit(1, [this](Crew&) { drain(); });
}

void Queue::drain() {
  std::deque<std::unique_ptr<Job>> begun;
  for (;;) {
    std::unique_ptr<Job> next;
    {
      std::lock_guard lock(mutex);
      if (waiting.empty() && begun.empty()) {
        draining = false;
        return;
      }
      if (begun.size() < together && !waiting.empty()) {
        next = std::move(waiting.front());
        waiting.pop_front();
      }
    }
    if (next) {
      next->begin();
      begun.push_back(std::move(next));
    } else {
      begun.front()->finish();
      begun.pop_front();
    }
  }
}

}  // namespace octconv::cuda
