// One NVIDIA GPU: its context, its kernels, its memory.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "driver.h"
#include "queue.h"

namespace octconv::cuda {

class Gpu {
 public:
  static int count();         // throws the reason if there is none
  static Gpu& get(int index);  // opened at its first use; throws why it cannot be used

  const std::string name;
  const int capability;  // 80 for sm_80
  const size_t memory;   // bytes
  const int multiprocessors;

  // Makes this thread's calls of the driver go to this GPU, as long as it lives.
  class Use {
   public:
    explicit Use(const Gpu& gpu);
    ~Use();
    Use(const Use&) = delete;

   private:
    const CUcontext before;  // uses may be nested
  };
  // A kernel of octconv.fatbin, with so many bytes of dynamic shared memory.
  CUfunction function(const std::string& kernel, size_t sharedBytes);

  Queue queue;  // of its runs

 private:
  explicit Gpu(int index);
  CUcontext context = nullptr;
  CUmodule module = nullptr;
  std::mutex mutex;
  std::map<std::string, CUfunction> functions;
};

// Memory of a GPU, or with `pinned` of the host, which copies to and from the GPU run beside other work.
class Block {
 public:
  enum class Where { device, pinned };
  Block() = default;
  Block(Gpu& gpu, size_t bytes, Where where);
  Block(Block&& other) noexcept { *this = std::move(other); }
  Block& operator=(Block&& other) noexcept;
  ~Block();

  CUdeviceptr device() const { return address; }
  char* host() const { return reinterpret_cast<char*>(address); }
  size_t size() const { return size_; }

 private:
  Gpu* gpu = nullptr;
  CUdeviceptr address = 0;
  size_t size_ = 0;
  Where where = Where::device;
};

// Work of a GPU that is done in order.
class Stream {
 public:
  explicit Stream(Gpu& gpu);
  ~Stream();
  Stream(const Stream&) = delete;
  void wait() const;  // for all of it
  operator CUstream() const { return stream; }

 private:
  Gpu& gpu;
  CUstream stream = nullptr;
};

// What lies in pinned memory, on the GPU.
Block uploaded(Gpu& gpu, const Block& pinned);

}  // namespace octconv::cuda
