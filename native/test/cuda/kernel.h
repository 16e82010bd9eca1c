// The kernels that the stand-in for the CUDA driver can launch, by name.
#pragma once
#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <utility>

namespace octconv::cuda {

struct Kernel {
  int mostThreads;  // of a block, as in its launch bounds
  int arguments;
  std::function<std::function<void()>(void** arguments)> bind;  // copies the arguments, as a launch does
};

extern const std::map<std::string, Kernel>& kernels;  // never destroyed: a process may end with launches in flight

template <class... Arguments>
Kernel kernelOf(void (*function)(Arguments...), int mostThreads) {
  static_assert((sizeof(Arguments) + ... + 0) <= 32764, "the driver takes no more than 32764 bytes of arguments");
  const auto bind = [function]<size_t... i>(std::index_sequence<i...>, void** arguments) {
    return [function, values = std::tuple<Arguments...>(*static_cast<Arguments*>(arguments[i])...)] {
      std::apply(function, values);
    };
  };
  return {mostThreads, sizeof...(Arguments),
          [bind](void** arguments) { return bind(std::index_sequence_for<Arguments...>(), arguments); }};
}

}  // namespace octconv::cuda
