#include "device.h"

#include "registry.h"

namespace octconv {

Device& Device::find(const std::string& name) {
  if (const DeviceKind* kind = Registered<DeviceKind>::find(name)) return kind->open();
  std::string known;
  for (const auto& [each, _] : Registered<DeviceKind>::all()) known += (known.empty() ? "" : ", ") + each;
  fail("device '", name, "' is unknown, wanted one of ", known);
}

}  // namespace octconv
