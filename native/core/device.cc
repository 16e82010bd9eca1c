#include "device.h"

#include "registry.h"

namespace octconv {

Device& Device::find(const std::string& name) {
  const size_t colon = name.find(':');
  const std::string index = colon == std::string::npos ? "0" : name.substr(colon + 1);
  const bool fine = !index.empty() && index.size() <= 4 && index.find_first_not_of("0123456789") == std::string::npos;
  if (const DeviceKind* kind = Registered<DeviceKind>::find(name.substr(0, colon)); kind && fine) {
    const int count = kind->count ? kind->count() : 1;
    if (std::stoi(index) >= count) fail("device '", name, "': there ", count == 1 ? "is 1" : "are " + std::to_string(count));
    return kind->open(std::stoi(index));
  }
  std::string known;
  for (const auto& [each, _] : Registered<DeviceKind>::all()) known += (known.empty() ? "" : ", ") + each;
  fail("device '", name, "' is unknown, wanted one of ", known);
}

}  // namespace octconv
