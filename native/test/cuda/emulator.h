// A CUDA device on the CPU: what kernels use of the machine (native/cuda/intrinsics.h), for tests.
//
// A thread of a block is a fiber. It runs until it waits for others, in synchronize() or for the 32 lanes of its warp;
// then another one runs. What CUDA leaves open is chosen by the seed: the order of blocks and threads, and when a copy
// that goes on beside a thread is made. Shared memory has the exact size of the launch and holds NaN before a block
// begins. Plain accesses beyond it are seen by AddressSanitizer. For ThreadSanitizer each fiber is a thread, and only
// synchronize() brings order among those of a launch.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace octconv::cuda {

struct Launch {
  int grid, block;
  size_t sharedBytes;
};

// Calls `kernel` as each thread of the launch. Throws what a thread throws, and std::runtime_error for a deadlock,
// lanes of a warp that do not call the same function, or a copy to a bad place. One launch runs at a time in a process.
//
// seed % 3: copies are made as late as allowed, at once, or at random in between. seed / 3 % 2: a warp that can go on
// does, or any thread may be next.
void run(const std::function<void()>& kernel, const Launch& launch, uint64_t seed);

// What runs now.
struct Emulated {
  int thread, block;
  char* shared;
};
extern Emulated emulated;

inline int threadIndex() { return emulated.thread; }
inline int blockIndex() { return emulated.block; }
inline char* sharedMemory() { return emulated.shared; }
void synchronize();

// Copies of a thread end in the order in which they began.
struct Copy16 {
  void begin(char* shared, const void* global, bool valid);
  void end();
};
void commitCopies();
void waitForCopies(int pending);
template <int pending>
void waitForCopies() {
  waitForCopies(pending);
}

float shuffleXor(float x, int mask);
void loadMatrices(uint32_t (&to)[4], const char* row);
void multiplyF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void multiplyBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void multiplyTf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

inline float floatOfBits(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t bitsOfFloat(float x) { return std::bit_cast<uint32_t>(x); }
inline float floatOfF16(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
inline uint32_t roundToF16(float x) { return x != x ? 0x7fff : std::bit_cast<uint16_t>(static_cast<_Float16>(x)); }
inline uint32_t packF16(float low, float high) { return roundToF16(high) << 16 | roundToF16(low); }
inline uint32_t roundToBf16(float x) {
  const uint32_t bits = bitsOfFloat(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t packBf16(float low, float high) { return roundToBf16(high) << 16 | roundToBf16(low); }
inline uint32_t roundToTf32(uint32_t bits) {
  return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fffe000 : (bits + 0x1000) & 0xffffe000;
}

}  // namespace octconv::cuda
