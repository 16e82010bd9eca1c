// Tests of blocks of memory: `pages-test NAME` runs one, without a name it lists them, see test/pages.test.ts.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/memory.h"

using namespace octconv;

namespace {

#define CHECK(condition) check(condition, #condition, __LINE__)
void check(bool holds, const char* what, int line) {
  if (holds) return;
  std::printf("line %d: %s\n", line, what);
  std::fflush(stdout);
  std::_Exit(1);
}

constexpr size_t KiB = 1024, MiB = 1024 * KiB;

// Of this process, in bytes: what is mapped, and what of it takes memory.
struct Usage {
  size_t mapped, resident;
};
Usage usage() {
  size_t mapped = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> mapped >> resident;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return {mapped * page, resident * page};
}

void fill(const Memory& block, int seed) { std::memset(block.data(), seed & 255, block.size()); }
bool isFilled(const Memory& block, int seed) {
  return std::all_of(block.data(), block.data() + block.size(),
                     [&](char c) { return c == static_cast<char>(seed & 255); });
}

// Blocks of any sizes come and go; none overlaps another, which would change what it is filled with.
void churn(unsigned seed, int rounds) {
  std::mt19937 random(seed);
  const size_t sizes[] = {1,       63,          4 * KiB,     64 * KiB - 1, 64 * KiB,        64 * KiB + 1,
                          1 * MiB, 2 * MiB - 1, 2 * MiB + 1, 9 * MiB,      64 * MiB - 4096, 65 * MiB};
  std::vector<Memory> blocks(12);
  for (int round = 0; round < rounds; round++) {
    const size_t i = random() % blocks.size();
    CHECK(isFilled(blocks[i], static_cast<int>(i + seed)));
    size_t bytes = sizes[random() % std::size(sizes)];
    if (bytes > 9 * MiB && random() % 8) bytes = 300 * KiB + random() % MiB;
    blocks[i] = Memory();
    blocks[i] = Memory(bytes);
    CHECK(reinterpret_cast<uintptr_t>(blocks[i].data()) % 64 == 0);
    fill(blocks[i], static_cast<int>(i + seed));
  }
  for (size_t i = 0; i < blocks.size(); i++) CHECK(isFilled(blocks[i], static_cast<int>(i + seed)));
}

const std::map<std::string, std::function<void()>> tests = {
    {"blocks that come and go do not overlap", [] { churn(1, 400); }},
    {"threads that take and give blocks at once",
     [] {
       std::vector<std::thread> all;
       for (unsigned seed = 1; seed <= 4; seed++) all.emplace_back(churn, seed, 100);
       for (std::thread& each : all) each.join();
     }},
    {"all is unmapped behind the last block",
     [] {
       const Usage before = usage();
       {
         std::vector<Memory> blocks;
         for (int i = 0; i < 200; i++) blocks.emplace_back(MiB + 4096);
         CHECK(usage().mapped >= before.mapped + 200 * MiB);
         std::shuffle(blocks.begin(), blocks.end(), std::mt19937(1));
         while (!blocks.empty()) blocks.pop_back();
       }
       CHECK(usage().mapped < before.mapped + MiB);
     }},
    {"what lies between blocks goes back to the system",
     [] {
       std::vector<Memory> blocks;
       for (int i = 0; i < 100; i++) fill(blocks.emplace_back(MiB), i);
       const size_t before = usage().resident;
       for (size_t i = 0; i < blocks.size(); i++)
         if (i % 10) blocks[i] = Memory();
       CHECK(usage().resident < before - 60 * MiB);
       for (size_t i = 0; i < blocks.size(); i += 10) CHECK(isFilled(blocks[i], static_cast<int>(i)));
     }},
    {"blocks share huge pages",
     [] {
       const size_t before = usage().resident;
       std::vector<Memory> blocks;
       for (int i = 0; i < 32; i++) fill(blocks.emplace_back(100 * KiB), i);
       CHECK(usage().resident < before + 6 * MiB);
     }},
    {"more than there can be is an error, and none is taken",
     [] {
       const Usage before = usage();
       for (const size_t bytes : {SIZE_MAX, SIZE_MAX - 63, SIZE_MAX / 2, size_t{1} << 40}) {
         try {
           const Memory block(bytes);
           CHECK(bytes == size_t{1} << 40);  // a system may promise it
         } catch (const Error& error) {
           CHECK(std::string(error.what()) == "memory: " + std::to_string(bytes) + " bytes could not be had");
         }
       }
       CHECK(usage().mapped < before.mapped + MiB);
     }},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1)
    for (const auto& [name, test] : tests) std::printf("%s\n", name.c_str());
  else
    tests.at(argv[1])();
}
