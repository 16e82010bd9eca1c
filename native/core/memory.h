// One block of memory: 64-byte aligned, in huge pages where it is large (fewer TLB misses on weights and activations).
#pragma once
#include <cstddef>
#include <cstdlib>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "error.h"

namespace octconv {

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    const size_t page = bytes >= hugePage ? hugePage : 64;
    data_ = static_cast<char*>(std::aligned_alloc(page, (bytes + page - 1) / page * page));
    if (!data_) fail("memory: ", bytes, " bytes could not be had");
#if defined(__linux__)
    if (page == hugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  }
  Memory(Memory&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_), std::swap(size_, other.size_);
    return *this;
  }
  ~Memory() { std::free(data_); }

  char* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }
  size_t size() const { return size_; }

 private:
  static constexpr size_t hugePage = size_t{2} << 20;
  char* data_ = nullptr;
  size_t size_ = 0;
};

// Offsets of pieces in one block.
class Layout {
 public:
  size_t add(size_t bytes) {
    const size_t offset = size_;
    size_ += (bytes + 63) / 64 * 64;
    return offset;
  }
  size_t size() const { return size_; }

 private:
  size_t size_ = 0;
};

}  // namespace octconv
