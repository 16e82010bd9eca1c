#include "queue.h"

#include "../core/threads.h"

namespace octconv::cuda {

void Queue::submit() {
  threads::submit(1, [this](Crew&) { turn(); });
}

void Queue::add(std::unique_ptr<Job> job) {
  std::lock_guard lock(mutex);
  waiting.push_back(std::move(job));
  if (draining) return;
  try {
    submit();
    draining = true;
  } catch (...) {  // no thread could be started
    waiting.pop_back();
    throw;
  }
}

std::unique_ptr<Queue::Job> Queue::next() {
  std::lock_guard lock(mutex);
  if (waiting.empty()) return nullptr;
  auto job = std::move(waiting.front());
  waiting.pop_front();
  return job;
}

// Finishes one job; the library's other work comes before the next turn.
void Queue::turn() {
  while (begun.size() < together) {
    auto job = next();
    if (!job) break;
    if (!job->begin(begun.empty())) {
      std::lock_guard lock(mutex);
      waiting.push_front(std::move(job));
      break;
    }
    begun.push_back(std::move(job));
  }
  begun.front()->finish();
  begun.pop_front();
  std::lock_guard lock(mutex);
  draining = !waiting.empty() || !begun.empty();
  if (draining) submit();
}

}  // namespace octconv::cuda
