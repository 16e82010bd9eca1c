// One block of memory: 64-byte aligned, in huge pages where it is large (fewer TLB misses on weights and activations).
#pragma once
#include <cstddef>
#include <cstdlib>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "sizes.h"

namespace octconv {

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    data_ = static_cast<char*>(mapped() ? map() : std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (!data_) fail("memory: ", bytes, " bytes could not be had");
  }
  Memory(Memory&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_), std::swap(size_, other.size_);
    return *this;
  }
  ~Memory() {
    if (!data_) return;
#if defined(__linux__)
    if (mapped()) {
      munmap(data_, size_);
      return;
    }
#endif
    std::free(data_);
  }

  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  static constexpr size_t hugePage = size_t{2} << 20;

#if defined(__linux__)
  // Large blocks are pages of their own, which go back to the system at once: malloc keeps what it has fragmented.
  bool mapped() const { return size_ >= size_t{64} << 10; }
  // Of at least a huge page: begins at one, so that the system can use them. The rest of the mapping is given back.
  void* map() const {
    const bool huge = size_ >= hugePage;
    if (size_ > SIZE_MAX / 2) return nullptr;
    const size_t page = 4096, bytes = (size_ + page - 1) / page * page, more = huge ? hugePage : 0;
    void* block = mmap(nullptr, bytes + more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return nullptr;
    if (!huge) return block;
    char* const first = static_cast<char*>(block);
    const size_t before = (hugePage - reinterpret_cast<size_t>(first) % hugePage) % hugePage;
    if (before) munmap(first, before);
    if (more > before) munmap(first + before + bytes, more - before);
    madvise(first + before, bytes, MADV_HUGEPAGE);
    return first + before;
  }
#else
  bool mapped() const { return false; }
  void* map() const { return nullptr; }
#endif

  char* data_ = nullptr;
  size_t size_ = 0;
};

// Offsets of pieces in one block.
class Layout {
 public:
  size_t add(size_t bytes) {
    const size_t offset = size_;
    size_ = static_cast<size_t>(sum(size_, sum(bytes, 63) / 64 * 64));
    return offset;
  }
  size_t size() const { return size_; }

 private:
  size_t size_ = 0;
};

}  // namespace octconv
