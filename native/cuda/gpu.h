// One NVIDIA GPU: its context, its kernels, its memory.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "../core/device.h"
#include "../core/function_ref.h"
#include "driver.h"
#include "queue.h"

namespace octconv::cuda {

class Convolutions;

// What makes a GPU compute: its primary context with octconv.fatbin in it. It is given back with the last of those that
// hold it: its Gpu, plans, memory, streams, events.
class Context {
 public:
  Context(int index, std::string name, int capability);
  ~Context();
  Context(const Context&) = delete;

  // Makes this thread's calls of the driver go to this GPU, as long as it lives. They may be nested, and what others do
  // with contexts on this thread is as before when it ends.
  class Use {
   public:
    explicit Use(const Context& context);
    ~Use();
    Use(const Use&) = delete;
  };
  // A kernel, with so many bytes of dynamic shared memory.
  CUfunction function(const std::string& kernel, size_t sharedBytes);
  // For destructors: calls what gives something of this GPU back. What cannot be given back goes with the context.
  void giveBack(FunctionRef<void(const Driver&)> release) const noexcept;

  // Has memory that is in no use: a plan, of its runs that have ended.
  struct Keeper {
    virtual void dropIdle() = 0;

   protected:
    ~Keeper() = default;
  };
  void add(Keeper& keeper);
  void remove(Keeper& keeper);
  // Calls what takes memory. Where there is no more, what is idle and what waits to be given back goes, and it is
  // called once more.
  void allocate(FunctionRef<void()> call);

  const std::string name;  // of the GPU

 private:
  struct Function {
    CUfunction handle;
    size_t sharedBytes;  // that it may have: the most that anybody wanted
  };
  CUdevice device = 0;
  CUcontext context = nullptr;
  CUmodule module = nullptr;
  std::mutex mutex;
  std::map<std::string, Function> functions;
  std::mutex keepersMutex;
  std::set<Keeper*> keepers;
};

class Gpu {
 public:
  static int count();          // throws the reason if there is none
  static Gpu& get(int index);  // throws why it cannot be used; lives for ever
  static void close();         // lets go of all contexts
  // One that is not there, for which plans are compiled: it has no context, and its memory is only counted.
  static Gpu& absent(const std::string& architecture);  // `sm_90`; throws if there are no kernels for it

  const std::string name;
  const int capability;  // 80 for sm_80
  const size_t memory;   // bytes
  const int multiprocessors;
  const size_t sharedBytes;           // that a block may have
  const int fmaPerClock;              // of a multiprocessor, about
  const std::vector<DType> computes;  // what our kernels multiply
  const std::string bus;              // where it sits, as NVML knows it

  // Made at its first use: it takes a while, and memory of the GPU. Null if it is not there.
  std::shared_ptr<Context> context();
  // What cuDNN computes on it, made the same way.
  std::shared_ptr<Convolutions> convolutions();
  std::string about() const;  // for errors: `sm_75`, of one that is there `sm_75, Tesla T4`
  void checkPresent() const;  // throws unless it is there

  Queue queue;  // of its runs

 private:
  explicit Gpu(int index);
  Gpu(std::string architecture, int capability, int multiprocessors, size_t sharedBytes);  // absent
  const int index;                                                                         // negative: it is not there
  std::mutex mutex;
  std::shared_ptr<Context> held;
  std::shared_ptr<Convolutions> heldConvolutions;
};

// Memory of a GPU, or with `pinned` of the host, which copies to and from the GPU run beside other work. Without a
// context there is none of a GPU, and ordinary memory of the host.
class Block {
 public:
  enum class Where { device, pinned };
  Block() = default;
  Block(std::shared_ptr<Context> context, size_t bytes, Where where);
  Block(Gpu& gpu, size_t bytes, Where where) : Block(gpu.context(), bytes, where) {}
  Block(Block&& other) noexcept { *this = std::move(other); }
  Block& operator=(Block&& other) noexcept;
  ~Block();

  const std::shared_ptr<Context>& owner() const { return context; }
  CUdeviceptr device() const { return address; }
  char* host() const { return reinterpret_cast<char*>(address); }
  size_t size() const { return size_; }

 private:
  void allocate();

  std::shared_ptr<Context> context;
  CUdeviceptr address = 0;
  size_t size_ = 0;
  Where where = Where::device;
};

// Work of a GPU that is done in order.
class Stream {
 public:
  explicit Stream(std::shared_ptr<Context> context);
  ~Stream();
  Stream(const Stream&) = delete;
  void wait() const;  // for all of it
  operator CUstream() const { return stream; }

 private:
  const std::shared_ptr<Context> context;
  CUstream stream = nullptr;
};

// A time in a stream's work.
class Event {
 public:
  explicit Event(std::shared_ptr<Context> context);
  ~Event();
  Event(const Event&) = delete;
  operator CUevent() const { return event; }

 private:
  const std::shared_ptr<Context> context;
  CUevent event = nullptr;
};

// Something in a stream's work cannot be captured.
struct NotCaptured : Error {
  using Error::Error;
};

// Work of a stream that is captured once and given to it as a whole any number of times.
class Graph {
 public:
  // Of what `work` gives to the stream, which is not done then. Throws NotCaptured.
  Graph(std::shared_ptr<Context> context, const Stream& stream, FunctionRef<void()> work);
  ~Graph();
  Graph(const Graph&) = delete;
  operator CUgraphExec() const { return executable; }

 private:
  const std::shared_ptr<Context> context;
  CUgraphExec executable = nullptr;
};

// A value that is on a GPU between runs.
struct Resident : Buffer {
  Block block;

  explicit Resident(Block block) : block(std::move(block)) {}
  size_t bytes() const override { return block.size(); }
  void read(std::span<std::byte> to) const override;
};

// What lies in pinned memory, on the GPU.
Block uploaded(Gpu& gpu, const Block& pinned);

}  // namespace octconv::cuda
