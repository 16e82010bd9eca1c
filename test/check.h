// For test programs: the first condition that does not hold is said, and ends the program.
#pragma once
#include <cstdio>
#include <cstdlib>

#define CHECK(condition) ::check(condition, #condition, __LINE__)

inline void check(bool holds, const char* what, int line) {
  if (holds) return;
  std::printf("line %d: %s\n", line, what);
  std::fflush(stdout);
  std::_Exit(1);
}
