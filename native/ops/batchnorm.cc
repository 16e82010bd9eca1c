// batchNorm: y = (x - running_mean) / sqrt(running_var + eps) * weight + bias per channel of [N,T,H,W,C]. Computed in
// f32; input and output may each be f32, f16, bf16 or u8.
//
// In networks it is folded into the convolution before it (lib/graph/fuse.ts); this op serves where it cannot be.
#include "batchnorm.h"

#include <cmath>

#include "../cpu/floats.h"

namespace octconv {

NormFactors normFactorsOf(const Attr& attrs, const Params& params) {
  std::vector<float> values[4];
  static constexpr const char* roles[] = {"weight", "bias", "running_mean", "running_var"};
  for (int i = 0; i < 4; i++) {
    const auto found = params.find(roles[i]);
    if (found == params.end()) fail("batchNorm: parameter '", roles[i], "' is missing");
    values[i] = found->second.floats();
    if (values[i].size() != values[0].size())
      fail("batchNorm: ", roles[i], " has ", values[i].size(), " elements, weight has ", values[0].size());
  }
  NormFactors factors;
  for (size_t c = 0; c < values[0].size(); c++) {
    factors.scale.push_back(values[0][c] / std::sqrt(values[3][c] + attrs.number("eps", 1e-5)));
    factors.shift.push_back(values[1][c] - values[2][c] * factors.scale[c]);
  }
  return factors;
}

std::string normFormatOf(const Attr& attrs) {
  std::ostringstream text;
  text.precision(17);
  text << "eps " << attrs.number("eps", 1e-5);
  return text.str();
}

namespace {

struct ScaleShift : Packed {
  std::vector<float> scale, shift;
  NormFactors exact;
  size_t bytes() const override { return scale.size() * 24; }
};

std::shared_ptr<const Packed> pack(const Attr& attrs, const Params& params, Crew&) {
  auto affine = std::make_shared<ScaleShift>();
  affine->exact = normFactorsOf(attrs, params);
  affine->scale.assign(affine->exact.scale.begin(), affine->exact.scale.end());
  affine->shift.assign(affine->exact.shift.begin(), affine->exact.shift.end());
  return affine;
}

void check(const Node& node) {
  node.want(1, 1);
  if (node.out(0) != node.in(0))
    fail("batchNorm: output ", node.out(0), " of input ", node.in(0), ", wanted the same shape");
}

const ScaleShift& scaleShiftOf(const Node& node) {
  const auto& affine = node.weights<ScaleShift>();
  if (affine.scale.size() != static_cast<size_t>(node.in(0).c))
    fail("batchNorm: ", affine.scale.size(), " parameters for the ", node.in(0).c, " channels of ", node.in(0));
  return affine;
}

Kernel slow(const Node& node, int) {
  return {[=, &a = scaleShiftOf(node)](Run& run) {
    for (int64_t i = 0; i < node.in(0).elements(); i++) {
      const size_t c = static_cast<size_t>(i % node.in(0).c);
      const double x = valueAt(run.inputs[0], node.inputs[0], i);
      setValue(run.outputs[0], node.outputs[0], i, static_cast<float>(x * a.exact.scale[c] + a.exact.shift[c]));
    }
  }};
}

Kernel fast(const Node& node, int) {
  const Shape s = node.in(0);
  const int64_t parts = pieces(s.pixels(), 1 + (1 << 13) / s.c);
  const Floats x(node.inputs[0]), y(node.outputs[0]);
  const int64_t pitch = x.type.pitch(), outPitch = y.type.pitch();
  return {[=, &a = scaleShiftOf(node), keep = node.packed, loop = OCTCONV_PICK(activatePixels)](Run& run) {
    run.parallel(parts, [&](int64_t task, char*) {
      const auto [begin, end] = piece(s.pixels(), parts, task);
      loop({x.elements(run.inputs[0], begin * pitch), pitch, y.elements(run.outputs[0], begin * outPitch), outPitch,
            a.scale.data(), a.shift.data()},
           end - begin, s.c);
    });
  }};
}

const Registered<Contract> contract{"batchNorm", {check, false, true}};
const Registered<Kernels<Reference>> onReference{"batchNorm", {slow, anyElements, pack, normFormatOf, true}};
const Registered<Kernels<Cpu>> onCpu{"batchNorm", {fast, anyFloats, pack, normFormatOf, true}};

}  // namespace
}  // namespace octconv
