// Tables that are filled before main: contracts by op, kernels of a device by op, devices by kind.
#pragma once
#include <map>
#include <string>
#include <utility>

namespace octconv {

// A static object of this type adds its entry; afterwards a table never changes.
template <class Entry>
class Registered {
 public:
  Registered(const char* name, Entry entry) { table().emplace(name, std::move(entry)); }

  static const std::map<std::string, Entry>& all() { return table(); }
  // Null if there is none.
  static const Entry* find(const std::string& name) {
    const auto found = table().find(name);
    return found == table().end() ? nullptr : &found->second;
  }

 private:
  static std::map<std::string, Entry>& table() {
    static auto* entries = new std::map<std::string, Entry>;  // never destroyed: threads may outlive main
    return *entries;
  }
};

}  // namespace octconv
