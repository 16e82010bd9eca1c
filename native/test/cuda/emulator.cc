#include "emulator.h"

#include <sys/mman.h>

#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// Of ThreadSanitizer's runtime, where there is one. This file itself is compiled without it: what fibers share here is
// no business of the kernel's.
extern "C" {
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* address);
[[gnu::weak]] void __tsan_release(void* address);
[[gnu::weak]] void __tsan_read16_pc(void* address, void* pc);
[[gnu::weak]] void __tsan_write16_pc(void* address, void* pc);
[[gnu::weak]] void AnnotateIgnoreReadsBegin(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreReadsEnd(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreWritesBegin(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace octconv::cuda {

Emulated emulated;

namespace {

constexpr int mostThreads = 1024, lanes = 32;
constexpr size_t stackBytes = 256 * 1024, guardBytes = 4096;

// What a thread that does not run waits for.
enum class State { turn, barrier, shuffleXor, loadMatrices, multiplyF16, multiplyBf16, multiplyTf32, nothing };
constexpr const char* nameOf[] = {"its turn",    "synchronize",  "shuffleXor",  "loadMatrices",
                                  "multiplyF16", "multiplyBf16", "multiplyTf32"};

struct Copy {
  char* to;
  const void* from;  // null: zeros
  int group;
  bool done;
  void* caller;
};

struct Fiber {
  void* stackPointer = nullptr;
  const void* stack = nullptr;
  size_t bytes = 0;
  void *fakeStack = nullptr, *tsan = nullptr;  // of the sanitizers

  int thread = -1;
  State state = State::nothing;
  std::vector<Copy> copies;  // that were not waited for
  int open = 0;              // the last ones of these, which have not ended
  int groups = 0;            // committed

  // Operands of a collective.
  float x, *d;
  int mask;
  uint32_t* to;
  const uint32_t *a, *b;
  uint32_t row[4];
};

struct Warp {
  int arrived = 0, first = 0;
  State state = State::nothing;
};

struct Random {
  uint64_t state;

  uint64_t operator()() {
    uint64_t x = state += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
  }
  int below(int n) { return static_cast<int>(((*this)() >> 32) * static_cast<uint64_t>(n) >> 32); }
  void shuffle(int* values, int count) {
    for (int i = count - 1; i > 0; i--) std::swap(values[i], values[below(i + 1)]);
  }
};

struct Unwind {};  // thrown by a thread that waits when another one has failed

// --- State of the launch that runs -----------------------------------------------------------------------------------

// Never destroyed: a launch may run when the process ends.
std::mutex& oneAtATime = *new std::mutex;
auto& fibers = *new std::vector<std::unique_ptr<Fiber>>;  // kept for later launches
Fiber& caller = *new Fiber;
Fiber *current = &caller, *previous;

const std::function<void()>* kernel;
Launch launch;
Random randomly;
enum class Copies { late, eager, random } copyMode;
bool goOn;  // a warp that can go on does

Fiber* threads[mostThreads];
Warp warps[mostThreads / lanes];
int ready[mostThreads], readyCount;  // threads
int arrived;                         // at the barrier
int ended;
std::exception_ptr failure;

// What ThreadSanitizer knows order by: begin and end of the launch, two barriers in turn.
char launched, finished, barriers[2];
int barrier;

void acquire(char& order) {
  if (__tsan_acquire) __tsan_acquire(&order);
}
void release(char& order) {
  if (__tsan_release) __tsan_release(&order);
}

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("block " + std::to_string(emulated.block) + ", thread " + std::to_string(current->thread) +
                           ": " + what);
}

// --- Fibers ----------------------------------------------------------------------------------------------------------

// Pushes what a function has to keep, exchanges the stacks, and pops.
[[gnu::naked]] void exchange(void** /* stackPointer to write */, void* /* to take */) {
  asm(R"(
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret)");
}

void arriveOnStack() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(current->fakeStack, &previous->stack, &previous->bytes);
#endif
}

void switchTo(Fiber& fiber) {
  previous = current;
  current = &fiber;
  emulated.thread = fiber.thread;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&previous->fakeStack, fiber.stack, fiber.bytes);
#endif
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber.tsan, 1);  // brings no order
  exchange(&previous->stackPointer, fiber.stackPointer);
  arriveOnStack();
}

// Runs another thread that can go on; the caller of run() if there is none.
void runNext() {
  if (failure || readyCount == 0) return switchTo(caller);
  if (!goOn) std::swap(ready[readyCount - 1], ready[randomly.below(readyCount)]);
  switchTo(*threads[ready[--readyCount]]);
}

void makeReady(int thread) {
  threads[thread]->state = State::turn;
  ready[readyCount++] = thread;
}

void make(Copy& copy) {
  if (copy.done) return;
  copy.done = true;
  copy.from ? memcpy(copy.to, copy.from, 16) : memset(copy.to, 0, 16);
}

// For ThreadSanitizer a copy takes place both when it is begun and when it is waited for.
void noteCopy(const Copy& copy) {
  if (!__tsan_read16_pc) return;
  if (copy.from) __tsan_read16_pc(const_cast<void*>(copy.from), copy.caller);
  __tsan_write16_pc(copy.to, copy.caller);
}

void wait(State state) {
  Fiber& self = *current;
  if (copyMode == Copies::random && !self.copies.empty())
    make(self.copies[static_cast<size_t>(randomly.below(static_cast<int>(self.copies.size())))]);
  self.state = state;
  runNext();
  if (failure) throw Unwind();
}

void runThread() {
  acquire(launched);
  try {
    if (!failure) (*kernel)();
    for (const Copy& copy : current->copies) noteCopy(copy);
  } catch (const Unwind&) {
  } catch (...) { failure = std::current_exception(); }
  release(finished);
  current->state = State::nothing;
  ended++;
}

[[noreturn]] void fiberMain() {
  arriveOnStack();
  for (;;) {
    runThread();
    runNext();
  }
}

std::unique_ptr<Fiber> newFiber() {
  auto fiber = std::make_unique<Fiber>();
  fiber->bytes = stackBytes;
  void* const memory =
      mmap(nullptr, guardBytes + stackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guardBytes, PROT_NONE) != 0) throw std::bad_alloc();
  char* const stack = static_cast<char*>(memory) + guardBytes;
  fiber->stack = stack;
  // What exchange() pops: six registers, then where to go on, which finds no one to return to.
  auto** const top = reinterpret_cast<void**>(stack + stackBytes) - 2;
  top[0] = reinterpret_cast<void*>(fiberMain);
  fiber->stackPointer = top - 6;
  if (__tsan_create_fiber) fiber->tsan = __tsan_create_fiber(0);
  return fiber;
}

// --- Blocks ----------------------------------------------------------------------------------------------------------

std::string deadlock() {
  std::string text = "block " + std::to_string(emulated.block) + ": deadlock:";
  for (const State state : {State::barrier, State::shuffleXor, State::loadMatrices, State::multiplyF16,
                            State::multiplyBf16, State::multiplyTf32, State::nothing}) {
    int count = 0, first = 0;
    for (int i = launch.block - 1; i >= 0; i--)
      if (threads[i]->state == state) count++, first = i;
    if (count == 0) continue;
    text +=
        (text.back() == ':' ? " " : ", ") + std::to_string(count) + " threads from " + std::to_string(first) + " on ";
    text += state == State::nothing ? "have ended" : std::string("wait in ") + nameOf[static_cast<int>(state)];
  }
  return text;
}

void runBlock() {
  int order[mostThreads];
  for (int i = 0; i < launch.block; i++) order[i] = i;
  randomly.shuffle(order, launch.block);
  arrived = ended = readyCount = 0;
  for (Warp& warp : warps) warp = {};
  for (int i = 0; i < launch.block; i++) {
    Fiber& fiber = *fibers[static_cast<size_t>(i)];
    fiber.thread = order[i];
    fiber.copies.clear();
    fiber.open = 0;
    fiber.groups = 0;
    threads[order[i]] = &fiber;
  }
  randomly.shuffle(order, launch.block);
  for (int i = 0; i < launch.block; i++) makeReady(order[i]);
  runNext();
  if (!failure && ended < launch.block) failure = std::make_exception_ptr(std::runtime_error(deadlock()));
  if (!failure) return;
  for (int i = 0; i < launch.block; i++)
    if (threads[i]->state != State::nothing) switchTo(*threads[i]);
  std::rethrow_exception(std::exchange(failure, nullptr));
}

// While it lives, ThreadSanitizer looks at no access of this thread: blocks have no order, but their shared memory may
// lie at the same place.
struct Unseen {
  Unseen() {
    if (!AnnotateIgnoreReadsBegin) return;
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    if (!AnnotateIgnoreReadsBegin) return;
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

// --- Collectives -----------------------------------------------------------------------------------------------------

// 32 lanes of a warp, which have all arrived.
void shuffleXor(Fiber* const* lane) {
  for (int l = 0; l < lanes; l++) *lane[l]->d = lane[l ^ lane[l]->mask]->x;
}

void loadMatrices(Fiber* const* lane) {
  for (int l = 0; l < lanes; l++)
    for (int i = 0; i < 4; i++) lane[l]->to[i] = lane[i * 8 + l / 4]->row[l % 4];
}

template <class Vector>
Vector load(const float* from) {
  Vector vector;
  memcpy(&vector, from, sizeof vector);
  return vector;
}

// Types of factors: how many there are in a row of a, and the i-th one of a register.
struct F16 {
  static constexpr int k = 16;
  static float at(uint32_t word, int i) { return floatOfF16(static_cast<uint16_t>(word >> i * 16)); }
};
struct Bf16 {
  static constexpr int k = 16;
  static float at(uint32_t word, int i) { return floatOfBits(word >> i * 16 << 16); }
};
struct Tf32 {
  static constexpr int k = 8;
  static float at(uint32_t word, int) { return floatOfBits(word & 0xffffe000); }
};

// d += a b: element (row, column) of the 16 x 8 sums, in the registers that the PTX ISA says of mma.m16n8k16 and
// m16n8k8.
template <class Type>
void multiply(Fiber* const* lane) {
  constexpr int k = Type::k, each = k / 8;  // factors in a register
  using Four [[gnu::vector_size(16)]] = float;
  alignas(16) float a[16][k], b[k][8], d[16][8];
  for (int l = 0; l < lanes; l++) {
    const Fiber& f = *lane[l];
    const int group = l / 4, in = l % 4;
    for (int i = 0; i < 4; i++) {
      d[group + i / 2 * 8][in * 2 + i % 2] = f.d[i];
      float* const to = a[group + i % 2 * 8] + i / 2 * (k / 2);
      for (int e = 0; e < each; e++) to[in * each + e] = Type::at(f.a[i], e);
    }
    for (int i = 0; i < 2; i++) {
      float(*const to)[8] = b + i * (k / 2);
      for (int e = 0; e < each; e++) to[in * each + e][group] = Type::at(f.b[i], e);
    }
  }
  for (int row = 0; row < 16; row++) {
    Four left = load<Four>(d[row]), right = load<Four>(d[row] + 4);
    for (int i = 0; i < k; i++) left += a[row][i] * load<Four>(b[i]), right += a[row][i] * load<Four>(b[i] + 4);
    memcpy(d[row], &left, 16), memcpy(d[row] + 4, &right, 16);
  }
  for (int l = 0; l < lanes; l++)
    for (int i = 0; i < 4; i++) lane[l]->d[i] = d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
}

// Waits for all lanes of the warp, the last of which does their work.
void collect(State state) {
  const int thread = current->thread, first = thread / lanes * lanes;
  Warp& warp = warps[thread / lanes];
  if (warp.arrived > 0 && warp.state != state)
    fail(std::string("is in ") + nameOf[static_cast<int>(state)] + " while thread " + std::to_string(warp.first) +
         " of its warp is in " + nameOf[static_cast<int>(warp.state)]);
  if (warp.arrived == 0) warp.first = thread, warp.state = state;
  if (++warp.arrived < lanes) return wait(state);
  warp.arrived = 0;
  Fiber* const* const lane = threads + first;
  if (state == State::shuffleXor) shuffleXor(lane);
  if (state == State::loadMatrices) loadMatrices(lane);
  if (state == State::multiplyF16) multiply<F16>(lane);
  if (state == State::multiplyBf16) multiply<Bf16>(lane);
  if (state == State::multiplyTf32) multiply<Tf32>(lane);
  const int start = randomly.below(lanes), stride = start | 1;
  for (int i = 0; i < lanes; i++) {
    const int next = first + (start + i * stride) % lanes;
    if (next != thread) makeReady(next);
  }
}

void checkShared(const char* function, const char* place) {
  const ptrdiff_t at = place - emulated.shared;
  if (at < 0 || static_cast<size_t>(at) + 16 > launch.sharedBytes || at % 16 != 0)
    fail(std::string(function) + ": 16 bytes at " + std::to_string(at) + " of " + std::to_string(launch.sharedBytes) +
         " bytes of shared memory" + (at % 16 != 0 ? ", a multiple of 16 is wanted" : ""));
}

}  // namespace

void run(const std::function<void()>& function, const Launch& shape, uint64_t seed) {
  if (shape.grid < 1 || shape.block < 1 || shape.block > mostThreads)
    throw std::runtime_error("a launch of " + std::to_string(shape.grid) + " blocks of " + std::to_string(shape.block) +
                             " threads: at least 1 and at most " + std::to_string(mostThreads) + " threads are wanted");
  const std::lock_guard lock(oneAtATime);
  kernel = &function;
  launch = shape;
  randomly = {seed};
  copyMode = static_cast<Copies>(seed % 3);
  goOn = seed / 3 % 2 == 0;
  while (fibers.size() < static_cast<size_t>(launch.block)) fibers.push_back(newFiber());
  if (__tsan_get_current_fiber) caller.tsan = __tsan_get_current_fiber();

  std::vector<int> blocks(static_cast<size_t>(launch.grid));
  for (int i = 0; i < launch.grid; i++) blocks[static_cast<size_t>(i)] = i;
  randomly.shuffle(blocks.data(), launch.grid);
  release(launched);
  const struct Finish {
    ~Finish() { acquire(finished); }
  } finish;
  for (const int block : blocks) {
    const Unseen unseen;
    const std::unique_ptr<char[]> shared(new char[launch.sharedBytes]);
    memset(shared.get(), 0xff, launch.sharedBytes);
    emulated = {-1, block, shared.get()};
    runBlock();
  }
}

void synchronize() {
  const int turn = barrier;
  release(barriers[turn]);
  if (++arrived < launch.block) {
    wait(State::barrier);
  } else {
    arrived = 0;
    barrier = 1 - barrier;
    int order[mostThreads], count = 0;
    for (int i = 0; i < launch.block; i++)
      if (threads[i] != current) order[count++] = i;
    randomly.shuffle(order, count);
    for (int i = 0; i < count; i++) makeReady(order[i]);
  }
  acquire(barriers[turn]);
}

void Copy16::begin(char* shared, const void* global, bool valid) {
  checkShared("Copy16", shared);
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) fail("Copy16: the address in global memory is no multiple of 16");
  Copy copy = {shared, valid ? global : nullptr, current->groups, false, __builtin_return_address(0)};
  noteCopy(copy);
  if (valid) asm volatile("" ::"r"(*static_cast<const int64_t*>(global)), "r"(static_cast<const int64_t*>(global)[1]));
  if (copyMode == Copies::eager) make(copy);
  current->copies.push_back(copy);
  current->open++;
}
void Copy16::end() { current->open--; }
void commitCopies() { current->groups++; }
void waitForCopies(int pending) {
  auto& copies = current->copies;
  size_t count = 0;
  for (; count < copies.size() && copies[count].group < current->groups - pending; count++) {
    make(copies[count]);
    noteCopy(copies[count]);
  }
  if (static_cast<int>(copies.size() - count) < current->open) fail("waitForCopies: a copy has not ended");
  copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(count));
}

float shuffleXor(float x, int mask) {
  if (mask < 1 || mask >= lanes) fail("shuffleXor: mask " + std::to_string(mask) + ", wanted 1 to 31");
  float result = 0;
  current->x = x, current->mask = mask, current->d = &result;
  collect(State::shuffleXor);
  return result;
}
void loadMatrices(uint32_t (&to)[4], const char* row) {
  checkShared("loadMatrices", row);
  if (__tsan_read16_pc) __tsan_read16_pc(const_cast<char*>(row), __builtin_return_address(0));
  memcpy(current->row, row, 16);
  current->to = to;
  collect(State::loadMatrices);
}
void multiplyF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  current->d = d, current->a = a, current->b = b;
  collect(State::multiplyF16);
}
void multiplyBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  current->d = d, current->a = a, current->b = b;
  collect(State::multiplyBf16);
}
void multiplyTf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  current->d = d, current->a = a, current->b = b;
  collect(State::multiplyTf32);
}

}  // namespace octconv::cuda
