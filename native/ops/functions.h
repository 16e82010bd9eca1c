// Ops that are told to a kernel by number: functions of one value and of two.
#pragma once

namespace octconv {

enum class Unary { relu, relu6, leakyRelu, sigmoid, silu, hardSigmoid, hardSwish, gelu };
enum class Binary { add, sub, mul, div };

}  // namespace octconv
