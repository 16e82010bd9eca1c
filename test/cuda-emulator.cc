// Tests of native/test/cuda/emulator.h, run by test/cuda-emulator.test.ts: `cuda-emulator-test` lists them, one a line;
// `cuda-emulator-test NAME` runs one. After a tab comes what a sanitizer has to report, which ends the process.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/intrinsics.h"

using namespace octconv::cuda;

#define CHECK(condition)                                                                \
  do {                                                                                  \
    if (!(condition)) std::printf("line %d: %s\n", __LINE__, #condition), std::exit(1); \
  } while (false)

namespace {

constexpr uint64_t seeds = 24;

void copy16(char* shared, const void* global, bool valid) {
  Copy16 copy;
  copy.begin(shared, global, valid);
  copy.end();
}

std::string errorOf(const std::function<void()>& kernel, Launch launch, uint64_t seed = 0) {
  try {
    run(kernel, launch, seed);
  } catch (const std::exception& error) { return error.what(); }
  return "";
}

// --- Tensor cores ----------------------------------------------------------------------------------------------------

// Integers, which all types hold.
float aAt(int row, int k) { return static_cast<float>((row * 7 + k * 3) % 11 - 5); }
float bAt(int k, int column) { return static_cast<float>((k * 5 + column * 2) % 13 - 6); }
float cAt(int row, int column) { return static_cast<float>(row - 2 * column); }

enum class Factors { f16, bf16, tf32 };
constexpr Factors allFactors[] = {Factors::f16, Factors::bf16, Factors::tf32};

uint32_t word(Factors type, float first, float second) {
  return type == Factors::f16    ? packF16(first, second)
         : type == Factors::bf16 ? packBf16(first, second)
                                 : bitsOfFloat(first);
}
void multiply(Factors type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if (type == Factors::f16) multiplyF16(d, a, b);
  if (type == Factors::bf16) multiplyBf16(d, a, b);
  if (type == Factors::tf32) multiplyTf32(d, a, b);
}

void checkProduct(const float (&d)[16][8], int depth, int columns) {
  for (int row = 0; row < 16; row++)
    for (int column = 0; column < columns; column++) {
      float sum = cAt(row, column);
      for (int k = 0; k < depth; k++) sum += aAt(row, k) * bAt(k, column);
      CHECK(d[row][column] == sum);
    }
}

// Fragments as the PTX ISA draws them: lane = groupID * 4 + threadID_in_group.
void fragments() {
  for (const Factors type : allFactors) {
    float result[16][8];
    run(
        [&] {
          const int groupID = threadIndex() >> 2, threadID_in_group = threadIndex() % 4;
          uint32_t a[4], b[2];
          float d[4];
          if (type != Factors::tf32) {
            for (int i = 0; i < 8; i += 2) {
              const int row = (i < 2) || (i >= 4 && i < 6) ? groupID : groupID + 8;
              const int k = threadID_in_group * 2 + (i < 4 ? 0 : 8);
              a[i / 2] = word(type, aAt(row, k), aAt(row, k + 1));
            }
            for (int i = 0; i < 4; i += 2) {
              const int k = threadID_in_group * 2 + (i < 2 ? 0 : 8);
              b[i / 2] = word(type, bAt(k, groupID), bAt(k + 1, groupID));
            }
          } else {
            for (int i = 0; i < 4; i++)
              a[i] = bitsOfFloat(aAt(i == 0 || i == 2 ? groupID : groupID + 8, threadID_in_group + (i < 2 ? 0 : 4)));
            for (int i = 0; i < 2; i++) b[i] = bitsOfFloat(bAt(threadID_in_group + (i == 0 ? 0 : 4), groupID));
          }
          const auto rowOf = [&](int i) { return i < 2 ? groupID : groupID + 8; };
          const auto columnOf = [&](int i) { return threadID_in_group * 2 + (i & 1); };
          for (int i = 0; i < 4; i++) d[i] = cAt(rowOf(i), columnOf(i));
          multiply(type, d, a, b);
          for (int i = 0; i < 4; i++) result[rowOf(i)][columnOf(i)] = d[i];
        },
        {1, 32, 0}, 1);
    checkProduct(result, type == Factors::tf32 ? 8 : 16, 8);
  }
}

// a as 16 rows of 32 bytes and b as 16 columns of 32 bytes, from shared memory.
void products() {
  for (const Factors type : allFactors)
    for (uint64_t seed = 0; seed < seeds; seed++) {
      float result[2][16][8];
      run(
          [&] {
            const int lane = threadIndex(), width = type == Factors::tf32 ? 1 : 2;
            auto* const rows = reinterpret_cast<uint32_t*>(sharedMemory());
            for (int i = lane; i < 16 * 8; i += 32) {
              const int row = i / 8, k = i % 8 * width;
              rows[i] = word(type, aAt(row, k), aAt(row, k + 1));
              rows[128 + i] = word(type, bAt(k, row), bAt(k + 1, row));
            }
            synchronize();
            uint32_t a[4], both[4];
            loadMatrices(a, sharedMemory() + lane % 16 * 32 + lane / 16 * 16);
            loadMatrices(both, sharedMemory() + 512 + (lane / 16 * 8 + lane % 8) * 32 + lane / 8 % 2 * 16);
            for (int j = 0; j < 2; j++) {
              float d[4];
              const uint32_t b[2] = {both[j * 2], both[j * 2 + 1]};
              const auto column = [&](int i) { return lane % 4 * 2 + i % 2; };
              for (int i = 0; i < 4; i++) d[i] = cAt(lane / 4 + i / 2 * 8, column(i) + j * 8);
              multiply(type, d, a, b);
              for (int i = 0; i < 4; i++) result[j][lane / 4 + i / 2 * 8][column(i)] = d[i];
            }
          },
          {1, 32, 1024}, seed);
      for (int row = 0; row < 16; row++)
        for (int column = 0; column < 16; column++) {
          float sum = cAt(row, column);
          for (int k = 0; k < (type == Factors::tf32 ? 8 : 16); k++) sum += aAt(row, k) * bAt(k, column);
          CHECK(result[column / 8][row][column % 8] == sum);
        }
    }
}

void shuffles() {
  for (uint64_t seed = 0; seed < seeds; seed++) {
    float result[2][64];
    run(
        [&] {
          const int thread = threadIndex();
          float x = static_cast<float>(thread * thread);
          for (const int mask : {1, 18}) result[mask / 18][thread] = x = shuffleXor(x, mask);
        },
        {1, 64, 0}, seed);
    for (int i = 0; i < 64; i++) {
      CHECK(result[0][i] == static_cast<float>((i ^ 1) * (i ^ 1)));
      CHECK(result[1][i] == static_cast<float>((i ^ 19) * (i ^ 19)));
    }
  }
  CHECK(errorOf([] { shuffleXor(0, 32); }, {1, 32, 0}).ends_with("shuffleXor: mask 32, wanted 1 to 31"));
}

void conversions() {
  CHECK(packBf16(1, -2) == 0xc0003f80);
  CHECK(packBf16(floatOfBits(0x3f808000), floatOfBits(0x3f818000)) == 0x3f823f80);  // ties to even
  CHECK(packBf16(floatOfBits(0x3f808001), 3.4e38f) == 0x7f803f81);
  CHECK(packBf16(NAN, INFINITY) == 0x7f807fff);
  CHECK(packF16(1, -2) == 0xc0003c00);
  CHECK(packF16(floatOfBits(0x3f801000), floatOfBits(0x3f803000)) == 0x3c023c00);  // ties to even
  CHECK(packF16(65519, -65520) == 0xfc007bff);
  CHECK(packF16(0x1p-24f, 0x1p-25f) == 0x00000001);  // subnormal, and half of the smallest
  CHECK(packF16(NAN, INFINITY) == 0x7c007fff);
  CHECK(floatOfF16(0x0001) == 0x1p-24f && floatOfF16(0x7bff) == 65504 && floatOfF16(0xfc00) == -INFINITY);
  CHECK(roundToTf32(0x3f800fff) == 0x3f800000);
  CHECK(roundToTf32(0x3f801000) == 0x3f802000);  // ties away from zero
  CHECK(roundToTf32(0x3f803000) == 0x3f804000);
  CHECK(roundToTf32(0xff800000) == 0xff800000);
  CHECK(std::isnan(floatOfBits(roundToTf32(0x7fffffff))));

  // What was not rounded is cut.
  float result = 0;
  run(
      [&] {
        const uint32_t a[4] = {0x3f801fff}, b[2] = {0x3f800000};
        float d[4] = {};
        multiplyTf32(d, a, b);
        if (threadIndex() == 0) result = d[0];
      },
      {1, 32, 0}, 0);
  CHECK(result == 4);
}

// --- Order -----------------------------------------------------------------------------------------------------------

enum class Fault { none, waitsForOneLess, waitsForNothing, doesNotCommit, doesNotSynchronize, copiesIntoSlotInUse };

constexpr int pipelineThreads = 64, pipelineSlots = 3, pipelineSteps = 8;

// Each thread copies its 16 bytes of a step two steps ahead, and sums up what its neighbour copied.
void pipeline(const std::vector<float>& input, std::vector<float>& sums, Fault fault) {
  const int thread = threadIndex(), neighbour = (thread + 33) % pipelineThreads;
  const auto load = [&](int step) {
    if (step < pipelineSteps) {
      const int slot = (step + (fault == Fault::copiesIntoSlotInUse ? step / 3 : 0)) % pipelineSlots;
      copy16(sharedMemory() + (slot * pipelineThreads + thread) * 16,
             input.data() + (step * pipelineThreads + thread) * 4, thread % 5 > 0);
    }
    if (fault != Fault::doesNotCommit) commitCopies();
  };
  float sum = 0;
  load(0);
  load(1);
  for (int step = 0; step < pipelineSteps; step++) {
    if (fault == Fault::waitsForOneLess) {
      waitForCopies<pipelineSlots - 1>();
    } else if (fault != Fault::waitsForNothing) {
      waitForCopies<pipelineSlots - 2>();
    }
    if (fault != Fault::doesNotSynchronize) synchronize();
    load(step + 2);
    const int slot = (step + (fault == Fault::copiesIntoSlotInUse ? step / 3 : 0)) % pipelineSlots;
    const auto* const from = reinterpret_cast<float*>(sharedMemory()) + (slot * pipelineThreads + neighbour) * 4;
    uint32_t words[4];
    loadMatrices(words, sharedMemory() + (slot * pipelineThreads + neighbour) * 16);
    for (int i = 0; i < 4; i++) sum += from[i];
  }
  sums[static_cast<size_t>(blockIndex() * pipelineThreads + thread)] = sum;
}

bool pipelineIsRight(Fault fault, uint64_t seed) {
  std::vector<float> input(pipelineSteps * pipelineThreads * 4);
  for (size_t i = 0; i < input.size(); i++) input[i] = static_cast<float>(i);
  std::vector<float> sums(3 * pipelineThreads), wanted(sums.size());
  for (int i = 0; i < 3 * pipelineThreads; i++) {
    const int neighbour = (i + 33) % pipelineThreads;
    for (int step = 0; step < pipelineSteps; step++)
      for (int j = 0; j < 4; j++)
        if (neighbour % 5 > 0)
          wanted[static_cast<size_t>(i)] += input[static_cast<size_t>((step * pipelineThreads + neighbour) * 4 + j)];
  }
  run([&] { pipeline(input, sums, fault); }, {3, pipelineThreads, pipelineSlots * pipelineThreads * 16}, seed);
  return sums == wanted;  // NaN is wrong too
}

int wrongRuns(Fault fault) {
  int wrong = 0;
  for (uint64_t seed = 0; seed < seeds; seed++) wrong += !pipelineIsRight(fault, seed);
  return wrong;
}

void rightPipeline() { CHECK(wrongRuns(Fault::none) == 0); }
#if !defined(__SANITIZE_THREAD__)
void lateCopies() {
  CHECK(wrongRuns(Fault::waitsForOneLess) > 0);
  CHECK(wrongRuns(Fault::waitsForNothing) > 0);
  CHECK(wrongRuns(Fault::doesNotCommit) > 0);
}
void missingBarrier() { CHECK(wrongRuns(Fault::doesNotSynchronize) > 0); }
void slotInUse() { CHECK(wrongRuns(Fault::copiesIntoSlotInUse) > 0); }
#endif

void order() {
  std::set<int> firstThreads, firstBlocks;
  for (uint64_t seed = 0; seed < seeds; seed++) {
    std::atomic<int> count = 0;
    int turns[4][64] = {};
    run([&] { turns[blockIndex()][threadIndex()] = ++count; }, {4, 64, 0}, seed);
    CHECK(count == 4 * 64);
    for (int i = 0; i < 4 * 64; i++) {
      CHECK(turns[i / 64][i % 64] > 0);
      if (turns[i / 64][i % 64] == 1) firstBlocks.insert(i / 64), firstThreads.insert(i % 64);
    }
  }
  CHECK(firstBlocks.size() > 1 && firstThreads.size() > 1);
}

void poison() {
  bool poisoned = true;
  run(
      [&] {
        for (int i = 0; i < 3; i++) poisoned = poisoned && std::isnan(reinterpret_cast<float*>(sharedMemory())[i]);
        synchronize();
        for (int i = 0; i < 3; i++) reinterpret_cast<float*>(sharedMemory())[i] = 0;
      },
      {2, 1, 12}, 0);
  CHECK(poisoned);
}

// --- Errors ----------------------------------------------------------------------------------------------------------

void deadlocks() {
  const std::string missing = errorOf(
      [] {
        if (threadIndex() < 96) synchronize();
      },
      {1, 128, 0});
  CHECK(missing == "block 0: deadlock: 96 threads from 0 on wait in synchronize, 32 threads from 96 on have ended");
  const std::string lane = errorOf(
      [] {
        uint32_t words[4];
        threadIndex() == 40 ? synchronize() : loadMatrices(words, sharedMemory());
      },
      {1, 64, 16});
  CHECK(lane ==
        "block 0: deadlock: 1 threads from 40 on wait in synchronize, 31 threads from 32 on wait in loadMatrices, "
        "32 threads from 0 on have ended");
}

void differentCollectives() {
  const std::string error = errorOf(
      [] {
        uint32_t words[4] = {};
        float d[4] = {};
        if (threadIndex() == 7) {
          multiplyBf16(d, words, {words[0], words[1]});
        } else {
          loadMatrices(words, sharedMemory());
        }
      },
      {1, 32, 16});
  CHECK(error.find("of its warp is in ") != std::string::npos);
  CHECK(error.find("loadMatrices") != std::string::npos && error.find("multiplyBf16") != std::string::npos);
}

void badCopies() {
  alignas(16) static const char from[32] = {};
  const auto copy = [](ptrdiff_t to, int offset) {
    return errorOf([=] { copy16(sharedMemory() + to, from + offset, true); }, {1, 1, 40});
  };
  CHECK(copy(16, 16).empty());
  CHECK(copy(32, 0) == "block 0, thread 0: Copy16: 16 bytes at 32 of 40 bytes of shared memory");
  CHECK(copy(-16, 0) == "block 0, thread 0: Copy16: 16 bytes at -16 of 40 bytes of shared memory");
  CHECK(copy(8, 0) ==
        "block 0, thread 0: Copy16: 16 bytes at 8 of 40 bytes of shared memory, a multiple of 16 is wanted");
  CHECK(copy(0, 8) == "block 0, thread 0: Copy16: the address in global memory is no multiple of 16");
  const auto left = [] {
    Copy16 copy;
    copy.begin(sharedMemory(), from, true);
    commitCopies();
    waitForCopies<0>();
  };
  CHECK(errorOf(left, {1, 1, 16}) == "block 0, thread 0: waitForCopies: a copy has not ended");
  const auto load = [] {
    uint32_t words[4];
    loadMatrices(words, sharedMemory() + threadIndex() * 16);
  };
  CHECK(errorOf(load, {1, 32, 512}).empty());
  CHECK(errorOf(load, {1, 32, 504}) ==
        "block 0, thread 31: loadMatrices: 16 bytes at 496 of 504 bytes of shared memory");
}

void threadThrows() {
  for (uint64_t seed = 0; seed < seeds; seed++) {
    std::atomic<int> alive = 0;
    struct Counted {
      std::atomic<int>& alive;
      explicit Counted(std::atomic<int>& alive) : alive(alive) { alive++; }
      ~Counted() { alive--; }
    };
    const std::string error = errorOf(
        [&] {
          const Counted counted(alive);
          synchronize();
          if (threadIndex() == 50 && blockIndex() == 1) throw std::runtime_error("thread 50");
          synchronize();
        },
        {2, 64, 0}, seed);
    CHECK(error == "thread 50");
    CHECK(alive == 0);
  }
  CHECK(errorOf([] {}, {1, 1025, 0}).find("1025 threads") != std::string::npos);
  CHECK(errorOf([] { synchronize(); }, {1, 1024, 0}).empty());
}

// --- Sanitizers ------------------------------------------------------------------------------------------------------

#if defined(__SANITIZE_ADDRESS__)
void sharedOverrun() {
  run([] { sharedMemory()[threadIndex()] = 0; }, {1, 64, 63}, 0);
}
void globalOverrun() {
  const std::vector<float> input(7);
  run([&] { copy16(sharedMemory(), input.data() + 4, true); }, {1, 1, 16}, 0);
}
#endif
#if defined(__SANITIZE_THREAD__)
void raceOfThreads() { pipelineIsRight(Fault::doesNotSynchronize, 1); }
void raceOfCopies() { pipelineIsRight(Fault::waitsForOneLess, 1); }  // copies are eager, the result is right
void raceOfBlocks() {
  int written = 0;
  run(
      [&] {
        if (threadIndex() == 0) written = blockIndex();
      },
      {3, 32, 0}, 0);
}
#endif

struct Test {
  void (*function)();
  const char* report = nullptr;
};
const std::map<std::string, Test> tests = {
    {"fragments lie as the PTX ISA says", {fragments}},
    {"products of matrices in shared memory", {products}},
    {"lanes of a warp exchange numbers", {shuffles}},
    {"conversions round as the hardware does", {conversions}},
    {"a right kernel is right under every seed", {rightPipeline}},
    {"every block and thread runs once, in an order of the seed", {order}},
    {"shared memory is NaN when a block begins", {poison}},
    {"a deadlock is an error", {deadlocks}},
    {"lanes of a warp that call different functions are an error", {differentCollectives}},
    {"a copy to a bad place is an error", {badCopies}},
    {"an error of a thread ends the launch and the other threads", {threadThrows}},
#if defined(__SANITIZE_THREAD__)
    {"a missing barrier is a race", {raceOfThreads, "ThreadSanitizer: data race"}},
    {"a copy that is not waited for is a race", {raceOfCopies, "ThreadSanitizer: data race"}},
    {"blocks that write the same place are a race", {raceOfBlocks, "ThreadSanitizer: data race"}},
#else
    {"copies that are not waited for show", {lateCopies}},
    {"a missing barrier shows", {missingBarrier}},
    {"a copy into a slot in use shows", {slotInUse}},
#endif
#if defined(__SANITIZE_ADDRESS__)
    {"shared memory ends where the launch says", {sharedOverrun, "AddressSanitizer: heap-buffer-overflow"}},
    {"a copy beyond global memory", {globalOverrun, "AddressSanitizer: heap-buffer-overflow"}},
#endif
};

}  // namespace

int main(int count, char** arguments) {
  const auto test = tests.find(count == 2 ? arguments[1] : "");
  if (test == tests.end()) {
    for (const auto& [name, found] : tests)
      std::printf("%s%s%s\n", name.c_str(), found.report ? "\t" : "", found.report ? found.report : "");
    return count == 1 ? 0 : 2;
  }
  test->second.function();
}
