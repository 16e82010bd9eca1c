// What an octConv node says (see contract.cc), for the files that compute it.
#pragma once
#include <cmath>
#include <optional>

#include "../../core/node.h"
#include "../unary.h"

namespace octconv {

// batchNorm, a function of one value, then clamp; each may be absent.
struct Activation {
  std::string batchNorm;  // role of its parameters
  double eps = 1e-5;
  const UnaryFunction* function = nullptr;
  float slope = 0;  // of the function
  float least = -INFINITY, most = INFINITY;
  bool operator==(const Activation&) const = default;
  bool isIdentity() const { return batchNorm.empty() && !function && least == -INFINITY && most == INFINITY; }
};

struct Source {
  size_t input;
  std::string weight;
  Size3 kernel, stride, padding, dilation;
  int64_t groups;
  Activation prologue;  // of the input, before it is pooled
  int64_t pool;         // how often P is applied to the input
  bool upsample;        // U is applied to the product
  float scale;          // i8: the input as u8
  int zero;
  int64_t taps() const { return kernel.product(); }
};

struct Term {
  std::vector<Source> sources;
  std::string bias, batchNorm;
  double eps;
  bool scaleOnly;  // of batchNorm: another term of the same sum has its shift
};

struct Store {
  size_t output;
  Activation activation;
  int64_t pool;  // how often P is applied after it
  bool mean;     // the mean over T, H and W instead
};

// What the products of a branch are made of.
enum class Compute { f32, bf16, i8, f16 };
inline DType operandType(Compute compute) {  // of the activations
  switch (compute) {
    case Compute::bf16:
      return DType::bf16;
    case Compute::f16:
      return DType::f16;
    case Compute::i8:
      return DType::u8;
    default:
      return DType::f32;
  }
}

// Positions of inputs: x, and a number per image and channel that it is multiplied by.
struct Gated {
  size_t input, gate;
};

struct Branch {
  std::vector<Term> terms;
  std::optional<Gated> gated;  // in place of terms
  std::optional<size_t> residual;
  std::vector<Store> stores;
  Compute compute;
  int64_t winograd;  // a hint: 2 or 4 for Winograd's F(2 x 2, 3 x 3) or F(4 x 4, 3 x 3); 0: direct convolution
  bool overTime;     // F(4, 3), F(2, 5) or F(4, 5) along T in place of that

  template <class F>
  void eachSource(F&& visit) const {
    for (const Term& term : terms)
      for (const Source& source : term.sources) visit(source);
  }
  int64_t groups() const { return gated ? 1 : terms.at(0).sources.at(0).groups; }
};

std::vector<Branch> branchesOf(const Attr& attrs);
std::string formatOf(const Attr& attrs);  // of what a branch is packed with: Kernels::format
Branch oneBranchOf(const Attr& attrs);    // of the attributes that a branch is packed with
Shape halved(Shape shape, int64_t times = 1);
// The shape of y: that of a store's value before P.
Shape shapeOf(const Branch& branch, const Node& node);

// --- Parameters -------------------------------------------------------------------------------------------------

int64_t outputChannels(const Branch& branch, const Params& params);  // 0 of a gate, which fits any
int64_t inputsOf(const Source& source, const Params& params);        // channels that a weight reads: of a group

// Batch normalisation in evaluation mode as y = scale * x + shift, per channel.
struct Affine {
  std::vector<double> scale, shift;
};
Affine affineOf(const Term& term, const Params& params, int64_t channels);  // the term's bias included
Affine affineOf(const Activation& activation, const Params& params);        // empty without batch normalisation

// A source's weight, shape checked, [O, I / groups, taps]: numbers, or integers; either way times a scale per output.
const Param& weightOf(const Source& source, const Params& params, int64_t outputs);
std::vector<float> weightScalesOf(const Source& source, const Params& params, int64_t outputs);

}  // namespace octconv
