#include "histogram.h"

#include <algorithm>
#include <cmath>

#include "threads.h"

namespace octconv {
namespace {

constexpr int64_t middle = Histogram::bins / 2, taskElements = 1 << 15;

struct Extent {
  float least = 0, most = 0;
  bool finite = true;

  // In lanes: the compiler does not take a minimum of floats apart.
  void add(std::span<const float> data) {
    constexpr size_t lanes = 8;
    float low[lanes] = {}, high[lanes] = {}, zero[lanes] = {};  // x * 0 is NaN of what is not finite
    const auto put = [&](size_t lane, float x) {
      low[lane] = x < low[lane] ? x : low[lane];
      high[lane] = x > high[lane] ? x : high[lane];
      zero[lane] += x * 0;
    };
    size_t i = 0;
    for (; i + lanes <= data.size(); i += lanes)
      for (size_t lane = 0; lane < lanes; lane++) put(lane, data[i + lane]);
    for (; i < data.size(); i++) put(0, data[i]);
    least = std::min(least, *std::min_element(low, low + lanes));
    most = std::max(most, *std::max_element(high, high + lanes));
    for (const float x : zero) finite = finite && x == 0;
  }
};

}  // namespace

// Makes room for what was seen: the limit is a power of two above it, and bins are joined.
void Histogram::widen(bool counted) {
  int halvings = 0;
  for (; std::max(most, -least) >= limit; halvings++) limit *= 2;
  if (halvings == 0 || !counted) return;
  std::vector<uint32_t> wider(bins);
  for (int64_t i = 0; i < bins; i++)
    wider[static_cast<size_t>(middle + ((i - middle) >> std::min(halvings, 31)))] += counts[static_cast<size_t>(i)];
  counts = std::move(wider);
}

void Histogram::add(std::span<const float> data, Crew& crew) {
  const int64_t before = elements, tasks = (static_cast<int64_t>(data.size()) + taskElements - 1) / taskElements;
  elements += static_cast<int64_t>(data.size());
  if (firstNotFinite >= 0) return;
  const auto part = [&](int64_t task) {
    const auto begin = static_cast<size_t>(task * taskElements);
    return data.subspan(begin, std::min(data.size() - begin, static_cast<size_t>(taskElements)));
  };
  const auto threads = static_cast<size_t>(crew.threads);
  struct alignas(64) Padded : Extent {};  // threads never share a cache line
  std::vector<Padded> extents(threads);
  crew.parallel(tasks, [&](int64_t task, int slot) { extents[static_cast<size_t>(slot)].add(part(task)); });
  if (crew.stopped()) return;  // not all was looked at
  for (const Extent& extent : extents) {
    if (!extent.finite) {
      const auto finite = [](float x) { return std::isfinite(x); };
      firstNotFinite = before + (std::find_if_not(data.begin(), data.end(), finite) - data.begin());
      return;
    }
    least = std::min(least, extent.least), most = std::max(most, extent.most);
  }
  widen(before > 0);
  std::vector<std::vector<uint32_t>> shares(threads);  // of the threads
  const double perUnit = middle / limit;
  crew.parallel(tasks, [&](int64_t task, int slot) {
    std::vector<uint32_t>& share = tasks == 1 ? counts : shares[static_cast<size_t>(slot)];
    if (share.empty()) share.resize(bins);
    for (const float x : part(task)) share[static_cast<uint32_t>(static_cast<int32_t>(x * perUnit + middle))]++;
  });
  for (const auto& share : shares)
    for (size_t i = 0; i < share.size(); i++) counts[i] += share[i];
}

}  // namespace octconv
