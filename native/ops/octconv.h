// What an octConv node says (see octconv.cc), for the files that compute it.
#pragma once
#include <cmath>
#include <optional>

#include "../core/op.h"

namespace octconv {

struct Source {
  size_t input;
  std::string weight;
  Size3 kernel, stride, padding, dilation;
  int64_t groups, pool;  // pool: how often P is applied to the input first
  bool upsample;         // U is applied to the product
  float scale;           // i8: the input as u8
  int zero;
  int64_t taps() const { return kernel.product(); }
};

struct Term {
  std::vector<Source> sources;
  std::string bias, batchNorm;
  double eps;
};

// What the products of a branch are made of.
enum class Compute { f32, bf16, i8 };
inline DType activationOf(Compute compute) {
  return compute == Compute::i8 ? DType::u8 : compute == Compute::bf16 ? DType::bf16 : DType::f32;
}

struct Branch {
  std::vector<Term> terms;
  std::optional<size_t> residual;
  float low, high;
  std::vector<size_t> outputs;
  Compute compute;
  int64_t winograd;  // 2 or 4: by Winograd's F(2 x 2, 3 x 3) or F(4 x 4, 3 x 3); 0: directly

  template <class F>
  void eachSource(F&& visit) const {
    for (const Term& term : terms)
      for (const Source& source : term.sources) visit(source);
  }
  int64_t groups() const { return terms.at(0).sources.at(0).groups; }
};

std::vector<Branch> branchesOf(const Attr& attrs);
Shape halved(Shape shape, int64_t times = 1);

// --- Parameters -------------------------------------------------------------------------------------------------

int64_t outputChannels(const Branch& branch, const Params& params);
int64_t inputsOf(const Source& source, const Params& params);  // channels that a weight reads: of a group

// Batch normalisation in evaluation mode as y = scale * x + shift, per output channel; the term's bias included.
struct Affine {
  std::vector<double> scale, shift;
};
Affine affineOf(const Term& term, const Params& params, int64_t channels);

// A source's weight, shape checked, [O, I / groups, taps]: numbers, or integers; either way times a scale per output.
const Param& weightOf(const Source& source, const Params& params, int64_t outputs);
std::vector<float> weightScalesOf(const Source& source, const Params& params, int64_t outputs);

// --- The fast kernel (octconv_cpu.cc) ---------------------------------------------------------------------------

std::shared_ptr<const Packed> packFast(const std::vector<Branch>& branches, const Params& params);
Kernel makeFast(const Node& node, const std::vector<Branch>& branches);

}  // namespace octconv
