// octConv: the octave convolution ("Drop an Octave", section 3), fused into one step.
//
//   stride 1:  yH = conv(xH; Whh) + U(conv(xL; Wlh))        yL = conv(xL; Wll) + conv(P(xH); Whl)
//   stride 2:  yH = conv(P(xH); Whh) + conv(xL; Wlh)        yL = conv(P(xL); Wll) + conv(P(P(xH)); Whl)
//
// So an output branch is a SUM OVER SOURCES: convolutions of inputs that may be pooled (P: 2x2 mean, ceil mode, borders
// averaged over what exists) or whose product is upsampled (U: nearest, cropped). The step has one or two branches:
//
//   branch[n,t,y,x,o] = clamp( residual + sum over terms of batchNorm( bias + sum over sources of conv(source) ) )
//
// A plain convolution is one branch of one source, a linear layer is that with a 1x1 kernel, a projection shortcut is
// a second term. By-products: outputs[1] = P(y), outputs[2] = P(P(y)) of a branch, for the layers that read y pooled.
//
// attrs.branches: list of { terms: [{ sources: [{ input, weight, kernel, stride, padding, dilation, groups, pool,
// upsample, scale?, zero? }], bias?, batchNorm?, eps? }], residual?, low?, high?, outputs: [y, P(y)?, P(P(y))?],
// compute?, winograd? }, where `input`, `residual` and `outputs` are positions in the node's inputs and outputs;
// `weight`, `bias` and `batchNorm` are roles of parameters. Weights are OIHW or OITHW.
//
// compute: 'f32' (default), 'bf16' or 'i8', what a branch multiplies. Its inputs become bf16, or u8 by the sources'
// scale and zero (x = scale * (q - zero)), unless they are so already; sums are f32 or i32, what follows is f32, and y
// is stored as the type of its value says, f32, bf16 or u8. P(x) has the type of x. An i8 weight has a parameter
// <role>.scale, a number per output channel: w = scale * q. For i8 scale * weight scale * batch norm scale must be the
// same for all sources of an output channel, since they go into one sum of integers.
//
// winograd: 2 or 4 where the CPU is to compute 3x3 convolutions by Winograd's algorithm (octconv_winograd.cc).
#include "octconv.h"

#include <cmath>

#include "../cpu/winograd.h"

namespace octconv {

// --- The contract -----------------------------------------------------------------------------------------------

static Size3 sizeOf(const Attr& attr, const char* key, int64_t otherwise) {
  return attr.has(key) ? Size3(attr[key]) : Size3(otherwise, otherwise, otherwise);
}

static Compute computeOf(const Attr& branch) {
  const std::string name = branch.has("compute") ? branch["compute"].text() : "f32";
  if (name != "f32" && name != "bf16" && name != "i8") fail("octConv: compute '", name, "', wanted f32, bf16 or i8");
  return name == "i8" ? Compute::i8 : name == "bf16" ? Compute::bf16 : Compute::f32;
}

static void checkWinograd(const Branch& branch) {
  if (branch.winograd != 2 && branch.winograd != 4) fail("octConv: winograd ", branch.winograd, ", wanted 2 or 4");
  branch.eachSource([&](const Source& s) {
    const Size3 one(1, 1, 1);
    if (s.kernel != Size3(1, 3, 3) || s.padding != Size3(0, 1, 1) || s.stride != one || s.dilation != one ||
        s.groups != 1)
      fail("octConv: winograd wants 3x3 convolutions of stride 1 and padding 1, without dilation or groups");
  });
}

std::vector<Branch> branchesOf(const Attr& attrs) {
  std::vector<Branch> branches;
  for (const Attr& b : attrs["branches"].list()) {
    Branch branch{{},
                  {},
                  static_cast<float>(b.number("low", -INFINITY)),
                  static_cast<float>(b.number("high", INFINITY)),
                  {},
                  computeOf(b),
                  b.integer("winograd", 0)};
    for (const Attr& t : b["terms"].list()) {
      Term term{{},
                t.has("bias") ? t["bias"].text() : "",
                t.has("batchNorm") ? t["batchNorm"].text() : "",
                t.number("eps", 1e-5)};
      for (const Attr& s : t["sources"].list())
        term.sources.push_back({static_cast<size_t>(s["input"].integer()), s["weight"].text(), Size3(s["kernel"]),
                                sizeOf(s, "stride", 1), sizeOf(s, "padding", 0), sizeOf(s, "dilation", 1),
                                s.integer("groups", 1), s.integer("pool", 0), s.flag("upsample"),
                                static_cast<float>(s.number("scale", 1)), static_cast<int>(s.integer("zero", 0))});
      branch.terms.push_back(std::move(term));
    }
    if (b.has("residual")) branch.residual = static_cast<size_t>(b["residual"].integer());
    for (const Attr& output : b["outputs"].list()) branch.outputs.push_back(static_cast<size_t>(output.integer()));
    if (branch.winograd) checkWinograd(branch);
    branches.push_back(std::move(branch));
  }
  return branches;
}

Shape halved(Shape shape, int64_t times) {
  for (; times > 0; times--) shape.h = half(shape.h), shape.w = half(shape.w);
  return shape;
}

static Shape convolved(const Shape& x, const Source& s, int64_t channels) {
  const auto size = [](int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    const int64_t span = in + 2 * padding - dilation * (kernel - 1) - 1;
    return span < 0 ? 0 : span / stride + 1;
  };
  return {x.n, size(x.t, s.kernel.t, s.stride.t, s.padding.t, s.dilation.t),
          size(x.h, s.kernel.h, s.stride.h, s.padding.h, s.dilation.h),
          size(x.w, s.kernel.w, s.stride.w, s.padding.w, s.dilation.w), channels};
}

static void check(const Node& node, const std::vector<Branch>& branches) {
  for (const auto* side : {&node.inputs, &node.outputs})
    for (const TensorType& type : *side) {
      if (type.dtype != DType::f32 && type.dtype != DType::bf16 && type.dtype != DType::u8)
        fail("octConv: '", node.name, "' has no kernel for ", nameOf(type.dtype), ", only for f32, bf16 and u8");
      if (type.dtype == DType::u8 && !(type.scale > 0 && type.scale < INFINITY && type.zero >= 0 && type.zero <= 255))
        fail("octConv: '", node.name, "' has u8 of scale ", type.scale, " and zero ", type.zero);
    }
  for (const Branch& branch : branches) {
    if (branch.outputs.empty() || branch.outputs.size() > 3)
      fail("octConv: a branch has 1 to 3 outputs, got ", branch.outputs.size());
    const Shape y = node.out(branch.outputs[0]);
    const DType dtype = node.outputs.at(branch.outputs[0]).dtype;
    const bool mixed = branch.residual && node.inputs.at(*branch.residual).dtype != dtype;
    if (branch.winograd && (mixed || (dtype == DType::u8) != (branch.compute == Compute::i8)))
      fail("octConv: winograd of '", node.name, "' wants f32 or bf16, or of i8 u8, for residual and output the same");
    int64_t channels[2] = {0, 0};
    branch.eachSource([&](const Source& s) {
      channels[s.upsample] += node.in(s.input).c;
      const Shape x = halved(node.in(s.input), s.pool), got = convolved(x, s, y.c);
      for (const Size3& size : {s.kernel, s.stride, s.dilation})
        if (size.t < 1 || size.h < 1 || size.w < 1) fail("octConv: kernel, stride and dilation must be positive");
      if (s.padding.t < 0 || s.padding.h < 0 || s.padding.w < 0 || s.pool < 0 || s.pool > 2)
        fail("octConv: padding or pool out of range");
      if (s.groups < 1 || x.c % s.groups || y.c % s.groups || s.groups != branch.groups())
        fail("octConv: ", s.groups, " groups do not divide ", x.c, " input and ", y.c, " output channels of '",
             node.name, "'");
      if (!(s.scale > 0 && s.scale < INFINITY && s.zero >= 0 && s.zero <= 255))
        fail("octConv: scale ", s.scale, " or zero ", s.zero, " out of range");
      if (node.inputs[s.input].dtype == DType::u8 && branch.compute == Compute::i8 &&
          (node.inputs[s.input].scale != s.scale || node.inputs[s.input].zero != s.zero))
        fail("octConv: '", node.name, "' reads u8 of scale ", node.inputs[s.input].scale, " as of scale ", s.scale);
      if (got != (s.upsample ? halved(y) : y))
        fail("octConv: '", node.name, "' makes ", got, " of input ", node.in(s.input), ", wanted ",
             s.upsample ? halved(y) : y);
    });
    if (branch.winograd && branch.compute == Compute::i8 &&
        std::max(channels[0], channels[1]) > winogradChannels(branch.winograd))
      fail("octConv: winograd of '", node.name, "' sums up ", std::max(channels[0], channels[1]),
           " channels of i8, wanted at most ", winogradChannels(branch.winograd));
    if (branch.residual && node.in(*branch.residual) != y)
      fail("octConv: residual ", node.in(*branch.residual), " must be ", y);
    for (size_t k = 1; k < branch.outputs.size(); k++) {
      if (node.out(branch.outputs[k]) != halved(y, k))
        fail("octConv: pooled output ", node.out(branch.outputs[k]), " must be ", halved(y, k));
      const TensorType &type = node.outputs[branch.outputs[0]], &pooled = node.outputs[branch.outputs[k]];
      if (pooled.dtype != type.dtype || pooled.scale != type.scale || pooled.zero != type.zero)
        fail("octConv: pooled output of '", node.name, "' must be of the same type as what is pooled");
    }
  }
}

static const Param& paramOf(const Params& params, const std::string& role) {
  const auto found = params.find(role);
  if (found == params.end()) fail("octConv: parameter '", role, "' is missing");
  return found->second;
}

static std::vector<float> vectorOf(const Params& params, const std::string& role, int64_t channels) {
  const Param& param = paramOf(params, role);
  if (param.elements() != channels) fail("octConv: ", role, " has ", param.elements(), " elements, wanted ", channels);
  return param.floats();
}

int64_t outputChannels(const Branch& branch, const Params& params) {
  const Param& weight = paramOf(params, branch.terms.at(0).sources.at(0).weight);
  return weight.shape.empty() ? 0 : weight.shape[0];
}

int64_t inputsOf(const Source& source, const Params& params) {
  const auto& shape = paramOf(params, source.weight).shape;
  if (shape.size() < 2) fail("octConv: ", source.weight, " has rank ", shape.size(), ", wanted OIHW or OITHW");
  return shape[1];
}

Affine affineOf(const Term& term, const Params& params, int64_t channels) {
  Affine affine{std::vector<double>(channels, 1), std::vector<double>(channels, 0)};
  if (!term.bias.empty()) {
    const auto bias = vectorOf(params, term.bias, channels);
    std::copy(bias.begin(), bias.end(), affine.shift.begin());
  }
  if (term.batchNorm.empty()) return affine;
  const auto gamma = vectorOf(params, term.batchNorm + ".weight", channels),
             beta = vectorOf(params, term.batchNorm + ".bias", channels);
  const auto mean = vectorOf(params, term.batchNorm + ".running_mean", channels),
             var = vectorOf(params, term.batchNorm + ".running_var", channels);
  for (size_t c = 0; c < affine.scale.size(); c++) {
    affine.scale[c] = gamma[c] / std::sqrt(var[c] + term.eps);
    affine.shift[c] = (affine.shift[c] - mean[c]) * affine.scale[c] + beta[c];
  }
  return affine;
}

const Param& weightOf(const Source& source, const Params& params, int64_t outputs) {
  const Param& param = paramOf(params, source.weight);
  const auto& shape = param.shape;
  const bool fits = shape.size() >= 2 && shape[0] == outputs && shape[1] > 0 &&
                    param.elements() == outputs * shape[1] * source.taps();
  if (!fits)
    fail("octConv: ", source.weight, " does not have ", outputs, " output channels and ", source.taps(), " taps");
  return param;
}

std::vector<float> weightScalesOf(const Source& source, const Params& params, int64_t outputs) {
  const bool integers = paramOf(params, source.weight).dtype == DType::i8;
  return integers ? vectorOf(params, source.weight + ".scale", outputs) : std::vector<float>(outputs, 1.f);
}

namespace {

struct PlainWeights : Packed {
  struct Weights {
    std::vector<float> elements, scale;
  };
  struct PerTerm {
    std::vector<Weights> sources;
    Affine affine;
  };
  std::vector<std::vector<PerTerm>> branches;
  size_t bytes() const override {
    size_t floats = 0;
    for (const auto& branch : branches)
      for (const auto& term : branch)
        for (const auto& source : term.sources) floats += source.elements.size();
    return floats * 4;
  }
};

// The elements of a value when it is kept as another type.
std::vector<float> elementsAs(const TensorType& type, const void* data, const TensorType& from) {
  std::vector<float> elements(type.shape.elements());
  for (size_t i = 0; i < elements.size(); i++) {
    char element[4];
    setValue(element, type, 0, valueAt(data, from, i));
    elements[i] = elementAt(element, type.dtype, 0);
  }
  return elements;
}

// P, applied `times` times, of elements to elements.
std::vector<float> pooled(std::vector<float> x, const TensorType& type, int64_t times) {
  const TensorType plain{type.dtype, {}, 1, 0};
  for (Shape shape = type.shape; times > 0; times--) {
    const Shape s = halved(shape);
    std::vector<float> out(s.elements());
    for (int64_t r = 0; r < s.rows(); r++)
      for (int64_t xo = 0; xo < s.w; xo++)
        for (int64_t c = 0; c < s.c; c++) {
          double sum = 0;
          int count = 0;
          for (int64_t y = r % s.h * 2; y < std::min(shape.h, r % s.h * 2 + 2); y++)
            for (int64_t xi = xo * 2; xi < std::min(shape.w, xo * 2 + 2); xi++, count++)
              sum += x[((r / s.h * shape.h + y) * shape.w + xi) * s.c + c];
          char element[4];
          setValue(element, plain, 0, static_cast<float>(sum / count));
          out[(r * s.w + xo) * s.c + c] = elementAt(element, type.dtype, 0);
        }
    x = std::move(out);
    shape = s;
  }
  return x;
}

void reference(const Node& node, const std::vector<Branch>& branches, Run& run) {
  const auto& plain = node.weights<PlainWeights>();
  for (size_t b = 0; b < branches.size(); b++) {
    const Branch& branch = branches[b];
    const TensorType& type = node.outputs[branch.outputs[0]];
    const Shape ys = type.shape;
    std::vector<double> total(ys.elements(), 0);
    for (size_t t = 0; t < branch.terms.size(); t++) {
      const Term& term = branch.terms[t];
      const Affine& affine = plain.branches[b][t].affine;
      std::vector<double> sum(total.size(), 0);
      for (size_t i = 0; i < term.sources.size(); i++) {
        const Source& s = term.sources[i];
        const Shape xs = halved(node.in(s.input), s.pool);
        const TensorType input{activationOf(branch.compute), node.in(s.input), s.scale, s.zero};
        std::vector<float> x = elementsAs(input, run.inputs[s.input], node.inputs[s.input]);
        x = pooled(std::move(x), input, s.pool);
        for (float& element : x) element = valueOf(element, input);
        const auto& [w, scale] = plain.branches[b][t].sources[i];
        const int64_t inGroup = xs.c / s.groups, outGroup = ys.c / s.groups;
        run.parallel(ys.rows(), [&](int64_t row, char*) {
          const int64_t n = row / (ys.t * ys.h), to = row / ys.h % ys.t, yo = row % ys.h / (s.upsample ? 2 : 1);
          for (int64_t column = 0; column < ys.w; column++)
            for (int64_t o = 0; o < ys.c; o++) {
              const int64_t xo = column / (s.upsample ? 2 : 1), first = o / outGroup * inGroup;
              double acc = 0;
              for (int64_t kt = 0; kt < s.kernel.t; kt++)
                for (int64_t ky = 0; ky < s.kernel.h; ky++)
                  for (int64_t kx = 0; kx < s.kernel.w; kx++) {
                    const int64_t ti = to * s.stride.t - s.padding.t + kt * s.dilation.t;
                    const int64_t yi = yo * s.stride.h - s.padding.h + ky * s.dilation.h;
                    const int64_t xi = xo * s.stride.w - s.padding.w + kx * s.dilation.w;
                    if (ti < 0 || ti >= xs.t || yi < 0 || yi >= xs.h || xi < 0 || xi >= xs.w) continue;
                    const int64_t tap = (kt * s.kernel.h + ky) * s.kernel.w + kx;
                    for (int64_t c = 0; c < inGroup; c++)
                      acc += static_cast<double>(x[(((n * xs.t + ti) * xs.h + yi) * xs.w + xi) * xs.c + first + c]) *
                             w[(o * inGroup + c) * s.taps() + tap];
                  }
              sum[(row * ys.w + column) * ys.c + o] += acc * scale[o];
            }
        });
      }
      for (size_t i = 0; i < sum.size(); i++) total[i] += affine.scale[i % ys.c] * sum[i] + affine.shift[i % ys.c];
    }
    const TensorType* residual = branch.residual ? &node.inputs[*branch.residual] : nullptr;
    for (size_t i = 0; i < total.size(); i++) {
      const double x = total[i] + (residual ? valueAt(run.inputs[*branch.residual], *residual, i) : 0.);
      setValue(run.outputs[branch.outputs[0]], type, i,
               static_cast<float>(x < branch.low    ? branch.low
                                  : x > branch.high ? branch.high
                                                    : x));
    }
    for (size_t k = 1; k < branch.outputs.size(); k++) {
      const std::vector<float> small = pooled(elementsAs(type, run.outputs[branch.outputs[0]], type), type, k);
      for (size_t i = 0; i < small.size(); i++)
        setValue(run.outputs[branch.outputs[k]], type, i, valueOf(small[i], type));
    }
  }
}

// --- Registration -----------------------------------------------------------------------------------------------

std::shared_ptr<const Packed> pack(const Attr& attrs, const Params& params, Device device) {
  const std::vector<Branch> branches = branchesOf(attrs);
  if (device == Device::cpu) return packFast(branches, params);
  auto plain = std::make_shared<PlainWeights>();
  for (const Branch& branch : branches) {
    const int64_t channels = outputChannels(branch, params);
    std::vector<PlainWeights::PerTerm> terms;
    for (const Term& term : branch.terms) {
      terms.push_back({{}, affineOf(term, params, channels)});
      for (const Source& source : term.sources) {
        terms.back().sources.push_back(
            {weightOf(source, params, channels).floats(), weightScalesOf(source, params, channels)});
        if (branch.compute != Compute::bf16) continue;
        // bf16 weights are those of the folded batch normalisation.
        auto& [w, scale] = terms.back().sources.back();
        const int64_t each = static_cast<int64_t>(w.size()) / channels;
        for (int64_t i = 0; i < channels * each; i++) {
          const auto factor = static_cast<float>(terms.back().affine.scale[i / each] * scale[i / each]);
          w[i] = factor == 0 ? 0 : floatOf(bfloat16Of(w[i] * factor)) / factor;
        }
      }
    }
    plain->branches.push_back(std::move(terms));
  }
  return plain;
}

Kernel make(const Node& node, Device device) {
  const std::vector<Branch> branches = branchesOf(node.attrs);
  check(node, branches);
  if (device == Device::cpu) return makeFast(node, branches);
  const auto unfit = [&] { fail("octConv: the weights given to '", node.name, "' were packed for another layer"); };
  const auto& plain = node.weights<PlainWeights>();
  if (plain.branches.size() != branches.size()) unfit();
  for (size_t b = 0; b < branches.size(); b++) {
    if (plain.branches[b].size() != branches[b].terms.size()) unfit();
    for (size_t t = 0; t < branches[b].terms.size(); t++)
      for (size_t i = 0; i < branches[b].terms[t].sources.size(); i++) {
        const Source& s = branches[b].terms[t].sources[i];
        const int64_t c = node.out(branches[b].outputs[0]).c * (node.in(s.input).c / s.groups) * s.taps();
        const auto& sources = plain.branches[b][t].sources;
        if (sources.size() <= i || static_cast<int64_t>(sources[i].elements.size()) != c) unfit();
      }
  }
  return {[=](Run& run) { reference(node, branches, run); }};
}

const Register op{"octConv", make, pack};

}  // namespace
}  // namespace octconv
