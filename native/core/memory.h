// One block of memory, 64-byte aligned. Blocks of 64 KiB and more are cut out of large mappings, for which huge pages
// are asked.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <utility>

#include "sizes.h"

namespace octconv {

// Pieces of large mappings (memory.cc). Small pages lie anywhere in physical memory: weights in them displace each
// other from a small L2 cache, and their addresses from the TLB. On Zen 1 (512 KiB of L2) the steps of ResNet-50
// took 219 ms, in huge pages they take 172 (`octconv bench ops --network resnet-50`).
namespace pages {
char* allocate(size_t bytes);          // null if there is no memory
void free(char* first, size_t bytes);  // what allocate() gave
}  // namespace pages

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    if (bytes <= static_cast<size_t>(mostBytes))
      data_ = paged() ? pages::allocate(bytes) : static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (!data_) fail("memory: ", bytes, " bytes could not be had");
  }
  Memory(Memory&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_), std::swap(size_, other.size_);
    return *this;
  }
  ~Memory() {
    if (data_) paged() ? pages::free(data_, size_) : std::free(data_);
  }

  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  // g++'s AddressSanitizer knows the bounds of what it allocates itself.
#if defined(__SANITIZE_ADDRESS__)
  bool paged() const { return false; }
#else
  bool paged() const { return size_ >= size_t{64} << 10; }
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
