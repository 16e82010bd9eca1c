// Functions of one value, elementwise on any shape. Computed in f32; input and output may each be f32, f16, bf16 or u8.
// NaN stays NaN.
#include "unary.h"

#include "../cpu/exponential.h"

namespace octconv::OCTCONV_LEVEL {

OCTCONV_INLINE Vec sigmoidOf(Vec x) { return splat(1) / (splat(1) + exponential(-x)); }
OCTCONV_INLINE Vec hardSigmoidOf(Vec x) { return clamp(x + splat(3), Vec{}, splat(6)) * splat(1.f / 6); }

// The probability that a normal variable is below x: half of erfc(-x / sqrt(2)), whose error is at most 1.2e-7 of its
// value (Numerical Recipes, erfcc).
OCTCONV_INLINE Vec normalBelow(Vec x) {
  const Vec z = (x < Vec{} ? -x : x) * splat(0.70710678f), t = splat(1) / (splat(1) + splat(0.5f) * z);
  static constexpr float factors[] = {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                                      0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
  Vec sum = splat(0.17087277f);
  for (const float factor : factors) sum = sum * t + splat(factor);
  const Vec tail = splat(0.5f) * t * exponential(sum - z * z);
  return x < Vec{} ? tail : splat(1) - tail;
}

// One form for whole vectors and the last one: a compiler that contracts products in two copies of `f` may do it in two
// ways.
template <class F>
static void applyBy(const F& f, const float* x, float* y, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += lanes) {
    const int some = count - i < lanes ? static_cast<int>(count - i) : lanes;
    const Vec result = f(some == lanes ? load(x + i) : load(x + i, some));
    some == lanes ? store(y + i, result) : store(y + i, result, some);
  }
}

void apply(Unary op, float slope, const float* x, float* y, ptrdiff_t count) {
  const auto by = [&](const auto& f) { applyBy(f, x, y, count); };
  const Vec infinity = splat(__builtin_inff());
  if (op == Unary::relu) by([=](Vec v) { return clamp(v, Vec{}, infinity); });
  if (op == Unary::relu6) by([](Vec v) { return clamp(v, Vec{}, splat(6)); });
  if (op == Unary::leakyRelu) by([=](Vec v) { return v < Vec{} ? v * splat(slope) : v; });
  if (op == Unary::sigmoid) by([](Vec v) { return sigmoidOf(v); });
  if (op == Unary::silu) by([](Vec v) { return v / (splat(1) + exponential(-v)); });
  if (op == Unary::hardSigmoid) by([](Vec v) { return hardSigmoidOf(v); });
  if (op == Unary::hardSwish) by([](Vec v) { return v * hardSigmoidOf(v); });
  if (op == Unary::gelu) by([](Vec v) { return v * normalBelow(v); });
}

}  // namespace octconv::OCTCONV_LEVEL

#if OCTCONV_MAIN
#include <cmath>
#include <cstring>

#include "../cpu/floats.h"
#include "../cpu/walk.h"

namespace octconv {
namespace {

double between(double x, double least, double most) { return x < least ? least : x > most ? most : x; }
double hardSigmoid(double x) { return between(x + 3, 0, 6) / 6; }

constexpr UnaryFunction table[] = {
    {"relu", Unary::relu, [](double x, double) { return between(x, 0, INFINITY); }},
    {"relu6", Unary::relu6, [](double x, double) { return between(x, 0, 6); }},
    {"leakyRelu", Unary::leakyRelu, [](double x, double slope) { return x < 0 ? x * slope : x; }},
    {"sigmoid", Unary::sigmoid, [](double x, double) { return 1 / (1 + std::exp(-x)); }},
    {"silu", Unary::silu, [](double x, double) { return x / (1 + std::exp(-x)); }},
    {"hardSigmoid", Unary::hardSigmoid, [](double x, double) { return hardSigmoid(x); }},
    {"hardSwish", Unary::hardSwish, [](double x, double) { return x * hardSigmoid(x); }},
    {"gelu", Unary::gelu, [](double x, double) { return x * std::erfc(-x * M_SQRT1_2) / 2; }},
};

const UnaryFunction& functionOf(const Node& node) {
  const UnaryFunction* function = unaryOf(node.op.c_str());
  if (!function) fail(node.op, ": this is no function of one value");
  return *function;
}

double slopeOf(const Node& node) { return node.attrs.number("slope", 0); }

void check(const Node& node) {
  node.want(1, 1);
  slopeOf(node);
  if (node.in(0) != node.out(0))
    fail(node.op, ": input ", node.in(0), " and output ", node.out(0), " must have one shape");
}

Kernel slow(const Node& node, int) {
  return {[=, value = functionOf(node).value, slope = slopeOf(node)](Run& run) {
    for (int64_t i = 0; i < node.in(0).elements(); i++) {
      const double x = valueAt(run.inputs[0], node.inputs[0], i);
      setValue(run.outputs[0], node.outputs[0], i, static_cast<float>(value(x, slope)));
    }
  }};
}

Kernel fast(const Node& node, int) {
  const Floats x(node.inputs[0]), y(node.outputs[0]);
  const Walk<1> walk({{node.in(0).elements(), {1}}});
  return {
      [=, op = functionOf(node).op, slope = static_cast<float>(slopeOf(node)), loop = OCTCONV_PICK(apply)](Run& run) {
        eachTile(run, walk, [&](const auto&, int64_t at, int64_t count, char* scratch) {
          auto* room = reinterpret_cast<float*>(scratch);
          const float* from = x.read(run.inputs[0], at, count, room);
          loop(op, slope, from, y.target(run.outputs[0], at, room), count);
          y.write(run.outputs[0], at, count, room);
        });
      },
      0, tileElements * sizeof(float)};
}

const bool registered = [] {
  for (const UnaryFunction& function : table) {
    Registered<Contract>(function.name, {check, false, true});
    Registered<Kernels<Reference>>(function.name, {slow, anyElements});
    Registered<Kernels<Cpu>>(function.name, {fast, anyFloats});
  }
  return true;
}();

}  // namespace

const UnaryFunction* unaryOf(const char* name) {
  for (const UnaryFunction& function : table)
    if (std::strcmp(function.name, name) == 0) return &function;
  return nullptr;
}

}  // namespace octconv
#endif
