// Named attributes of an op, as plain data: what a JavaScript object of numbers, booleans, strings, arrays and objects
// holds.
#pragma once
#include <cmath>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "sizes.h"

namespace octconv {

class Attr {
 public:
  using List = std::vector<Attr>;
  using Map = std::map<std::string, Attr>;
  std::variant<double, bool, std::string, List, Map> value;

  double number() const { return as<double>("a number"); }
  const std::string& text() const { return as<std::string>("a string"); }
  const List& list() const { return as<List>("a list"); }
  int64_t integer() const {
    const double x = number();
    if (!(std::abs(x) <= 0x1p53) || x != std::trunc(x)) fail("attribute ", x, " must be an integer");
    return static_cast<int64_t>(x);
  }

  bool has(const std::string& key) const { return map().count(key) != 0; }
  const Attr& operator[](const std::string& key) const {
    const auto found = map().find(key);
    if (found == map().end()) fail("attribute '", key, "' is missing");
    return found->second;
  }
  double number(const std::string& key, double otherwise) const { return has(key) ? (*this)[key].number() : otherwise; }
  int64_t integer(const std::string& key, int64_t otherwise) const {
    return has(key) ? (*this)[key].integer() : otherwise;
  }
  bool flag(const std::string& key) const { return has(key) && (*this)[key].as<bool>("a boolean"); }

 private:
  template <class T>
  const T& as(const char* wanted) const {
    if (const T* held = std::get_if<T>(&value)) return *held;
    fail("attribute must be ", wanted);
  }
  const Map& map() const { return as<Map>("an object"); }
};

// A size along time, height and width: kernel, stride, padding, dilation.
struct Size3 {
  int64_t t = 1, h = 1, w = 1;
  Size3(int64_t t, int64_t h, int64_t w) : t(t), h(h), w(w) {}
  explicit Size3(const Attr& attr) {
    const auto& list = attr.list();
    if (list.size() != 3) fail("attribute must be [time, height, width], got ", list.size(), " numbers");
    t = list[0].integer(), h = list[1].integer(), w = list[2].integer();
  }
  int64_t product() const { return octconv::product(t, h, w); }
  bool operator==(const Size3&) const = default;
};

}  // namespace octconv
