#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <new>

namespace octconv::pages {
namespace {

constexpr size_t hugePage = size_t{2} << 20;
// Sizes of pieces are multiples of it.
constexpr size_t unit = size_t{4} << 10;
// The least size of a mapping. Pages that were never written take no memory.
constexpr size_t mappingBytes = size_t{64} << 20;

size_t roundUp(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

struct Piece {
  size_t bytes;
  bool used, startsMapping;
};

struct Pages {
  std::mutex mutex;
  // All pieces of all mappings by address. Neighbours of one mapping are never both free.
  std::map<char*, Piece> pieces;
};
// Never destroyed: blocks may be freed when static objects are gone.
Pages& all() {
  static auto* const it = new Pages;
  return *it;
}

// Begins at a huge page. What is mapped before it and behind it is given back.
char* map(size_t bytes) {
  void* const block = mmap(nullptr, bytes + hugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) return nullptr;
  char* const from = static_cast<char*>(block);
  const auto address = reinterpret_cast<uintptr_t>(from);
  const size_t before = roundUp(address, hugePage) - address;
  if (before) munmap(from, before);
  munmap(from + before + bytes, hugePage - before);
#if defined(MADV_HUGEPAGE)
  madvise(from + before, bytes, MADV_HUGEPAGE);  // advice: where it is not taken, all works with small pages
#endif
  return from + before;
}

// The huge pages that lie within some bytes go back to the system.
void discard(char* first, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(first), from = roundUp(begin, hugePage),
             to = (begin + bytes) / hugePage * hugePage;
  if (from < to) madvise(first + (from - begin), to - from, MADV_DONTNEED);
}

}  // namespace

// The first free piece that is large enough. The rest of it stays free.
char* allocate(size_t bytes) try {
  bytes = roundUp(bytes, unit);
  auto& [mutex, pieces] = all();
  std::lock_guard lock(mutex);
  auto at = std::find_if(pieces.begin(), pieces.end(),
                         [&](const auto& each) { return !each.second.used && each.second.bytes >= bytes; });
  if (at == pieces.end()) {
    const size_t least = roundUp(bytes, hugePage);
    for (const size_t size : {std::max(least, mappingBytes), least}) {  // the second where memory is limited
      char* const first = map(size);
      if (!first) continue;
      try {
        at = pieces.insert({first, {size, false, true}}).first;
      } catch (const std::bad_alloc&) {
        munmap(first, size);
        throw;
      }
      break;
    }
  }
  if (at == pieces.end()) return nullptr;
  auto& [first, piece] = *at;
  if (piece.bytes > bytes) pieces[first + bytes] = {piece.bytes - bytes, false, false};
  piece.bytes = bytes, piece.used = true;
  return first;
} catch (const std::bad_alloc&) { return nullptr; }

// Joins the piece with its free neighbours. A mapping with no used piece is unmapped, free huge pages are given back.
void free(char* first, size_t bytes) {
  discard(first, bytes);  // without the lock: it takes milliseconds if they are many
  auto& [mutex, pieces] = all();
  std::unique_lock lock(mutex);
  auto at = pieces.find(first);
  at->second.used = false;
  auto next = std::next(at);
  if (next != pieces.end() && !next->second.used && !next->second.startsMapping) {
    at->second.bytes += next->second.bytes;
    next = pieces.erase(next);
  }
  if (!at->second.startsMapping && !std::prev(at)->second.used) {
    const auto before = std::prev(at);
    before->second.bytes += at->second.bytes;
    pieces.erase(at);
    at = before;
  }
  const auto [begin, piece] = *at;
  if (piece.startsMapping && (next == pieces.end() || next->second.startsMapping)) {
    pieces.erase(at);
    lock.unlock();
    munmap(begin, piece.bytes);
    return;
  }
  // The huge pages at its ends, which the piece shared with its neighbours.
  char* const from = std::max(begin, first - hugePage);
  char* const to = std::min(begin + piece.bytes, first + roundUp(bytes, unit) + hugePage);
  discard(from, static_cast<size_t>(to - from));
}

}  // namespace octconv::pages
