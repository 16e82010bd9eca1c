#include "device.h"

#include <cctype>

#include "registry.h"

namespace octconv {

static Device& lookUp(const std::string& name) {
  const size_t colon = name.find(':');
  const std::string index = colon == std::string::npos ? "0" : name.substr(colon + 1);
  const bool fine = !index.empty() && index.size() <= 4 && index.find_first_not_of("0123456789") == std::string::npos &&
                    (index == "0" || index[0] != '0');  // a device has one name
  const DeviceKind* kind = Registered<DeviceKind>::find(name.substr(0, colon));
  if (kind && kind->plan && !index.empty() && std::isalpha(static_cast<unsigned char>(index[0])))
    return kind->plan(index);
  if (kind && fine) {
    const int count = kind->count ? kind->count() : 1;
    const std::string first = name.substr(0, colon);
    if (std::stoi(index) >= count)
      fail("wanted ", first, count == 1 ? ", the only one" : " to " + first + ":" + std::to_string(count - 1));
    return kind->open(std::stoi(index));
  }
  std::string known;
  for (const auto& [each, _] : Registered<DeviceKind>::all()) known += (known.empty() ? "" : ", ") + each;
  fail("wanted one of ", known, ", or one of several by its number, as in cuda:1");
}

Device& Device::find(const std::string& name) {
  try {
    return lookUp(name);
  } catch (const Error& error) { fail("device '", name, "': ", error.what()); }
}

void Device::closeAll() {
  for (const auto& [_, kind] : Registered<DeviceKind>::all())
    if (kind.close) kind.close();
}

}  // namespace octconv
