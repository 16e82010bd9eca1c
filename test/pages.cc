// Tests of large blocks of memory: `pages-test NAME` runs one, without a name it lists them, see test/pages.test.ts.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/memory.h"

using namespace octconv;

namespace {

constexpr size_t KiB = 1024, MiB = 1024 * KiB;

// A piece of a mapping; freed with it. Memory has none where a sanitizer allocates.
class Block {
 public:
  Block() = default;
  explicit Block(size_t bytes) : first(pages::allocate(bytes)), size(bytes) { CHECK(first); }
  Block(Block&& other) noexcept { *this = std::move(other); }
  Block& operator=(Block&& other) noexcept {
    std::swap(first, other.first), std::swap(size, other.size);
    return *this;
  }
  ~Block() {
    if (first) pages::free(first, size);
  }

  char* first = nullptr;
  size_t size = 0;
};

void fill(const Block& block, size_t value) { std::memset(block.first, static_cast<char>(value), block.size); }
// Each byte is that of the first. Under ThreadSanitizer a loop over bytes takes 3 to 7 times as long.
bool isFilled(const Block& block, size_t value) {
  if (block.size == 0) return true;
  return *block.first == static_cast<char>(value) && std::memcmp(block.first, block.first + 1, block.size - 1) == 0;
}

// Blocks of any sizes come and go. None overlaps another, which would change what it is filled with.
void churn(size_t seed, int rounds) {
  std::mt19937 random(static_cast<unsigned>(seed));
  const size_t sizes[] = {1,           4 * KiB,     64 * KiB, 64 * KiB + 1,    1 * MiB,
                          2 * MiB - 1, 2 * MiB + 1, 9 * MiB,  64 * MiB - 4096, 65 * MiB};
  std::vector<Block> blocks(12);
  const auto valueOf = [&](size_t i) { return seed * blocks.size() + i; };
  for (int round = 0; round < rounds; round++) {
    const size_t i = random() % blocks.size();
    CHECK(isFilled(blocks[i], valueOf(i)));
    size_t bytes = sizes[random() % std::size(sizes)];
    if (bytes > 9 * MiB && random() % 8) bytes = 300 * KiB + random() % MiB;
    blocks[i] = Block();
    blocks[i] = Block(bytes);
    CHECK(reinterpret_cast<uintptr_t>(blocks[i].first) % 4096 == 0);
    fill(blocks[i], valueOf(i));
  }
  for (size_t i = 0; i < blocks.size(); i++) CHECK(isFilled(blocks[i], valueOf(i)));
}

// Of this process, in bytes: what is mapped, and what of it takes memory.
struct Usage {
  size_t mapped, resident;
};
[[maybe_unused]] Usage usage() {
  size_t mapped = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> mapped >> resident;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return {mapped * page, resident * page};
}

// Whether huge pages are asked for the mapping that this address lies in.
bool asksForHugePages(const char* address) {
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    unsigned long from = 0, to = 0;
    const auto at = reinterpret_cast<uintptr_t>(address);
    if (std::sscanf(line.c_str(), "%lx-%lx ", &from, &to) == 2) inside = from <= at && at < to;
    if (inside && line.starts_with("VmFlags:")) return line.find(" hg") != std::string::npos;
  }
  return false;
}

const std::map<std::string, std::function<void()>> tests = {
    {"blocks that come and go do not overlap", [] { churn(1, 400); }},
    {"threads that allocate and free blocks at once",
     [] {
       std::vector<std::thread> all;
       for (size_t seed = 1; seed <= 4; seed++) all.emplace_back(churn, seed, 100);
       for (std::thread& each : all) each.join();
     }},
    {"blocks share a mapping for which huge pages are asked",
     [] {
       const Block first(100 * KiB), second(MiB), third(64 * KiB);
       CHECK(reinterpret_cast<uintptr_t>(first.first) % (2 * MiB) == 0);
       CHECK(second.first == first.first + 100 * KiB);
       CHECK(third.first == second.first + MiB);
       if (std::filesystem::exists("/sys/kernel/mm/transparent_hugepage")) CHECK(asksForHugePages(first.first));
     }},
    {"a block takes the first free piece that is large enough",
     [] {
       std::vector<Block> blocks;
       for (int i = 0; i < 4; i++) blocks.emplace_back(MiB);
       char* const first = blocks[0].first;
       char* const second = blocks[1].first;
       blocks[0] = Block();
       blocks[1] = Block();
       CHECK(Block(MiB + 4096).first == first);  // of both together
       const Block small(MiB);
       CHECK(small.first == first);
       CHECK(Block(MiB).first == second);
     }},
    {"more than there can be is an error, and none is used",
     [] {
       for (const size_t bytes : {SIZE_MAX, SIZE_MAX - 63, SIZE_MAX / 2, (size_t{1} << 40) + 1}) {
         std::string error;
         try {
           const Memory block(bytes);
         } catch (const Error& caught) { error = caught.what(); }
         CHECK(error == std::string("memory: ").append(std::to_string(bytes)).append(" bytes could not be had"));
       }
     }},
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // these have memory of their own
    {"where memory is limited a mapping is as small as it can be, and an error leaves all well",
     [] {
       rlimit before{};
       getrlimit(RLIMIT_AS, &before);
       rlimit little = before;
       little.rlim_cur = usage().mapped + 40 * MiB;
       setrlimit(RLIMIT_AS, &little);
       const Block small(MiB);
       CHECK(pages::allocate(60 * MiB) == nullptr);
       setrlimit(RLIMIT_AS, &before);
       const Block large(60 * MiB);
       fill(small, 1), fill(large, 2);
       CHECK(isFilled(small, 1) && isFilled(large, 2));
     }},
    {"all is unmapped behind the last block",
     [] {
       const Usage before = usage();
       {
         std::vector<Block> blocks;
         for (int i = 0; i < 200; i++) blocks.emplace_back(MiB + 4096);
         CHECK(usage().mapped >= before.mapped + 200 * MiB);
         std::shuffle(blocks.begin(), blocks.end(), std::mt19937(1));
         while (!blocks.empty()) blocks.pop_back();
       }
       CHECK(usage().mapped < before.mapped + MiB);
     }},
    {"what lies between blocks goes back to the system",
     [] {
       std::vector<Block> blocks;
       for (size_t i = 0; i < 100; i++) fill(blocks.emplace_back(MiB + 4096), i);
       const size_t before = usage().resident;
       std::vector<size_t> gone;
       for (size_t i = 0; i < blocks.size(); i++)
         if (i % 10) gone.push_back(i);
       std::shuffle(gone.begin(), gone.end(), std::mt19937(1));
       for (const size_t i : gone) blocks[i] = Block();
       CHECK(usage().resident < before - 60 * MiB);
       for (size_t i = 0; i < blocks.size(); i += 10) CHECK(isFilled(blocks[i], i));
     }},
#endif
};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1)
    for (const auto& [name, test] : tests) std::printf("%s\n", name.c_str());
  else
    tests.at(argv[1])();
}
