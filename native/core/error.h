// Errors of the native side. They become JavaScript Errors in binding.cc; nothing here prints, aborts or exits.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace octconv {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A line of bounded length, whatever names of files or ops are in it.
inline std::string oneLine(std::string text) {
  constexpr size_t most = 1000;
  if (text.size() > most) {
    size_t end = most;
    while (end > 0 && (text[end] & 0xc0) == 0x80) end--;  // not within a character of UTF-8
    text.resize(end);
    text += "...";
  }
  for (char& c : text)
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = ' ';
  return text;
}

// fail("octconv: ", found, " ..., wanted ", wanted): concatenates what it is given and throws.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(oneLine(text.str()));
}

}  // namespace octconv
