// A reference to something that can be called, as std::function_ref of C++26: made without an allocation, so that a run
// makes none. What it refers to must outlive it.
#pragma once
#include <memory>
#include <type_traits>
#include <utility>

namespace octconv {

template <class Signature>
class FunctionRef;

template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>>>
  FunctionRef(F&& function)
      : object(const_cast<void*>(static_cast<const void*>(std::addressof(function)))),
        call([](void* object, Args... args) -> Result {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}

  Result operator()(Args... args) const { return call(object, std::forward<Args>(args)...); }

 private:
  void* object;
  Result (*call)(void*, Args...);
};

}  // namespace octconv
