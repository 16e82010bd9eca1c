// Errors of the native side. They become JavaScript Errors in binding.cc; nothing here prints, aborts or exits.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace octconv {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// fail("octconv: ", found, " ..., wanted ", wanted): concatenates what it is given and throws.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace octconv
