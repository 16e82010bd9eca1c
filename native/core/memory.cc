#include "memory.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <new>

namespace octconv::pages {
namespace {

constexpr size_t page = size_t{4} << 10, hugePage = size_t{2} << 20;
constexpr size_t mappingBytes = size_t{64}
                                << 20;  // of a mapping at least; pages that nobody has written take no memory

size_t upTo(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Piece {
  size_t bytes;
  bool taken, begins;  // begins: a mapping
};

std::mutex mutex;
// All pieces of all mappings by address; neighbours of one mapping are never both free. Pieces may be given back when
// static objects are gone.
std::map<char*, Piece>& pieces() {
  static auto* const all = new std::map<char*, Piece>;
  return *all;
}

// Begins at a huge page; what is mapped before it and behind it is given back.
char* map(size_t bytes) {
  void* const block = mmap(nullptr, bytes + hugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) return nullptr;
  char* const first = static_cast<char*>(block);
  const size_t before = upTo(reinterpret_cast<size_t>(first), hugePage) - reinterpret_cast<size_t>(first);
  if (before) munmap(first, before);
  munmap(first + before + bytes, hugePage - before);
  madvise(first + before, bytes, MADV_HUGEPAGE);
  return first + before;
}

// A free piece of at least so many bytes, which begins a new mapping.
char* grow(size_t bytes) {
  bytes = std::max(upTo(bytes, hugePage), mappingBytes);
  char* const first = map(bytes);
  if (!first) return nullptr;
  try {
    pieces()[first] = {bytes, false, true};
  } catch (const std::bad_alloc&) {
    munmap(first, bytes);
    return nullptr;
  }
  return first;
}

}  // namespace

// The first piece that is large enough; what it has more stays free.
char* take(size_t bytes) try {
  bytes = upTo(bytes, page);
  std::lock_guard lock(mutex);
  auto at = std::find_if(pieces().begin(), pieces().end(),
                         [&](const auto& each) { return !each.second.taken && each.second.bytes >= bytes; });
  if (at == pieces().end()) {
    char* const first = grow(bytes);
    if (!first) return nullptr;
    at = pieces().find(first);
  }
  auto& [first, piece] = *at;
  if (piece.bytes > bytes) pieces()[first + bytes] = {piece.bytes - bytes, false, false};
  piece.bytes = bytes, piece.taken = true;
  return first;
} catch (const std::bad_alloc&) { return nullptr; }

// Joined with its free neighbours. A mapping without others goes back to the system, as do huge pages without others.
void give(char* first) {
  std::lock_guard lock(mutex);
  auto at = pieces().find(first);
  at->second.taken = false;
  auto next = std::next(at);
  if (next != pieces().end() && !next->second.taken && !next->second.begins) {
    at->second.bytes += next->second.bytes;
    next = pieces().erase(next);
  }
  if (!at->second.begins && !std::prev(at)->second.taken) {
    const auto before = std::prev(at);
    before->second.bytes += at->second.bytes;
    pieces().erase(at);
    at = before;
  }
  const auto [begin, piece] = *at;
  if (piece.begins && (next == pieces().end() || next->second.begins)) {
    munmap(begin, piece.bytes);
    pieces().erase(at);
    return;
  }
  const size_t from = upTo(reinterpret_cast<size_t>(begin), hugePage),
               to = (reinterpret_cast<size_t>(begin) + piece.bytes) / hugePage * hugePage;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
}

}  // namespace octconv::pages
#endif
