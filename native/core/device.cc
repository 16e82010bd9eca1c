#include "device.h"

#include "registry.h"

namespace octconv {

Device& Device::find(const std::string& name) {
  const size_t colon = name.find(':');
  const DeviceKind* kind = Registered<DeviceKind>::find(name.substr(0, colon));
  if (!kind) {
    std::string known;
    for (const auto& [each, _] : Registered<DeviceKind>::all()) known += (known.empty() ? "" : ", ") + each;
    fail("device '", name, "' is unknown, wanted one of ", known);
  }
  int index = 0;
  if (colon != std::string::npos) {
    const std::string digits = name.substr(colon + 1);
    if (digits.empty() || digits.size() > 3 || digits.find_first_not_of("0123456789") != std::string::npos)
      fail("device '", name, "' has no index after the colon");
    index = std::stoi(digits);
  }
  return kind->open(index);
}

}  // namespace octconv
