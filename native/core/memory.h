// One block of memory: 64-byte aligned, and if it is large in huge pages, which it shares with others.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <utility>

#include "sizes.h"

namespace octconv {

// Pieces of whole pages, cut out of mappings of huge pages (memory.cc). Weights that lie in small pages anywhere in
// physical memory displace each other from the L2 cache: where that has 512 KiB (Zen 1), ResNet-50 took 219 ms in place
// of 172.
namespace pages {
char* take(size_t bytes);  // null if there is no memory
void give(char* piece);    // what take() gave
}  // namespace pages

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    if (bytes <= static_cast<size_t>(mostBytes))
      data_ = paged() ? pages::take(bytes) : static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (!data_) fail("memory: ", bytes, " bytes could not be had");
  }
  Memory(Memory&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_), std::swap(size_, other.size_);
    return *this;
  }
  ~Memory() {
    if (data_) paged() ? pages::give(data_) : std::free(data_);
  }

  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  // AddressSanitizer knows the bounds of what it allocates itself.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
  bool paged() const { return size_ >= size_t{64} << 10; }
#else
  bool paged() const { return false; }
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
