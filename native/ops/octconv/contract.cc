// octConv: the octave convolution ("Drop an Octave", section 3), fused into one step.
//
//   stride 1:  yH = conv(xH; Whh) + U(conv(xL; Wlh))        yL = conv(xL; Wll) + conv(P(xH); Whl)
//   stride 2:  yH = conv(P(xH); Whh) + conv(xL; Wlh)        yL = conv(P(xL); Wll) + conv(P(P(xH)); Whl)
//
// P is 2x2 average pooling (stride 2, ceil mode, borders averaged over what exists), U nearest upsampling (cropped). An
// output branch is a SUM OVER SOURCES, convolutions of inputs, and a step has one or two branches:
//
//   y       = residual + sum over terms of batchNorm(bias + sum over sources of U?(conv(source)))
//   source  = P^pool(clamp(batchNorm(x)))            the prologue; each part may be absent
//   stores  = P^pool(clamp(function(batchNorm(y))))  any number of them; y is stored only where a store says so
//
// A store may keep the mean over T, H and W instead, [N,1,1,1,C], of and as f32. In place of terms a branch may have an
// input times a gate, a number per image and channel that another step has computed (squeeze and excitation).
//
// A plain convolution is one branch of one source, a linear layer is that with a 1x1 kernel, a projection shortcut is a
// second term, a pre-activation block stores y and clamp(batchNorm(y)).
//
// attrs.branches: list of { terms, gated?, residual?, stores, compute?, hints? }
//   terms:   list of { sources, bias?, batchNorm?, eps?, scaleOnly? }; empty if there is `gated`. scaleOnly: the factor
//            of batchNorm without its shift, for parts of one normalized sum that different steps compute; no bias
//   sources: list of { input, weight, kernel, stride?, padding?, dilation?, groups?, pool?, upsample?, prologue?,
//            scale?, zero? }
//   gated:   { input, gate }
//   stores:  list of { output, pool?, mean?, activation? }
//   prologue, activation: { batchNorm?, eps?, function?, slope?, least?, most? }, `function` in stores only
// `input`, `gate`, `residual` and `output` are positions in the node's inputs and outputs; `weight`, `bias` and
// `batchNorm` are roles of the branch's parameters. Weights are OIHW or OITHW. Parameters are packed branch by branch.
//
// compute: 'f32' (default), 'bf16', 'f16' or 'i8', what a branch multiplies. Its inputs become of that type, for i8 u8
// by the sources' scale and zero (x = scale * (q - zero)), unless they are so already; sums are f32 or i32, what
// follows is f32, and a store has the type of its value, f32, bf16, f16 or u8. P of a source takes and gives elements
// of the type that is multiplied, P of a store elements of the type that is stored. An i8 weight has a parameter
// <role>.scale, a number per output channel: w = scale * q. For i8, scale * weight scale * batch norm scale must be the
// same for all sources of an output channel, since they go into one sum of integers.
//
// Inputs, residual and stores may be padded, or slices of wider tensors (TensorType::gap).
//
// hints: what a device's own pass chose; winograd: 2 or 4 (cpu, winograd.cc), overTime: 4, or 2 of 5 taps, along T
// (cpu, overtime.cc).
#include "contract.h"

#include <algorithm>

#include "../../core/registry.h"

namespace octconv {

// --- The contract -----------------------------------------------------------------------------------------------

static Size3 sizeOf(const Attr& attr, const char* key, int64_t otherwise) {
  return attr.has(key) ? Size3(attr[key]) : Size3(otherwise, otherwise, otherwise);
}

static std::string textOf(const Attr& attr, const char* key) { return attr.has(key) ? attr[key].text() : ""; }

static Compute computeOf(const Attr& branch) {
  static const std::map<std::string, Compute> known{
      {"f32", Compute::f32}, {"bf16", Compute::bf16}, {"f16", Compute::f16}, {"i8", Compute::i8}};
  const std::string name = branch.has("compute") ? branch["compute"].text() : "f32";
  const auto found = known.find(name);
  if (found == known.end()) fail("octConv: compute '", name, "', wanted f32, bf16, f16 or i8");
  return found->second;
}

static Activation activationOf(const Attr& attrs, const char* key) {
  if (!attrs.has(key)) return {};
  const Attr& a = attrs[key];
  const std::string name = textOf(a, "function");
  const UnaryFunction* function = name.empty() ? nullptr : unaryOf(name.c_str());
  if (!name.empty() && !function) fail("octConv: '", name, "' is no function of one value");
  return {textOf(a, "batchNorm"),
          a.number("eps", 1e-5),
          function,
          static_cast<float>(a.number("slope", 0)),
          static_cast<float>(a.number("least", -INFINITY)),
          static_cast<float>(a.number("most", INFINITY))};
}

static size_t indexOf(const Attr& attr) {
  const int64_t index = attr.integer();
  if (index < 0) fail("octConv: position ", index, ", wanted at least 0");
  return static_cast<size_t>(index);
}

constexpr int64_t mostSize = int64_t{1} << 31, mostTaps = int64_t{1} << 20;

static void checkSizes(const Source& s) {
  for (const Size3& size : {s.kernel, s.stride, s.dilation})
    if (std::min({size.t, size.h, size.w}) < 1 || std::max({size.t, size.h, size.w}) > mostSize)
      fail("octConv: kernel, stride and dilation must be from 1 to ", mostSize);
  if (s.taps() > mostTaps) fail("octConv: ", s.weight, " has ", s.taps(), " taps, wanted at most ", mostTaps);
  if (std::min({s.padding.t, s.padding.h, s.padding.w}) < 0 ||
      std::max({s.padding.t, s.padding.h, s.padding.w}) > mostSize || s.pool < 0 || s.pool > 2)
    fail("octConv: padding or pool out of range");
  if (s.groups < 1) fail("octConv: ", s.groups, " groups, wanted at least 1");
  if (!(s.scale > 0 && s.scale < INFINITY && s.zero >= 0 && s.zero <= 255))
    fail("octConv: scale ", s.scale, " or zero ", s.zero, " out of range");
}

static void checkActivation(const Activation& a) {
  if (std::isnan(a.least) || std::isnan(a.most) || a.least > a.most)
    fail("octConv: a clamp from ", a.least, " to ", a.most);
  if (!(a.eps >= 0 && a.eps < INFINITY)) fail("octConv: eps ", a.eps, ", wanted at least 0");
}

static Source sourceOf(const Attr& s) {
  Source source{indexOf(s["input"]),
                s["weight"].text(),
                Size3(s["kernel"]),
                sizeOf(s, "stride", 1),
                sizeOf(s, "padding", 0),
                sizeOf(s, "dilation", 1),
                s.integer("groups", 1),
                activationOf(s, "prologue"),
                s.integer("pool", 0),
                s.flag("upsample"),
                static_cast<float>(s.number("scale", 1)),
                static_cast<int>(std::clamp<int64_t>(s.integer("zero", 0), -1, 256))};
  checkSizes(source);
  checkActivation(source.prologue);
  if (source.prologue.function) fail("octConv: a prologue with ", source.prologue.function->name, ", wanted a clamp");
  return source;
}

static Store storeOf(const Attr& s) {
  Store store{indexOf(s["output"]), activationOf(s, "activation"), s.integer("pool", 0), s.flag("mean")};
  if (store.pool < 0 || store.pool > 2) fail("octConv: a store has pool ", store.pool, ", wanted 0 to 2");
  if (store.mean && store.pool) fail("octConv: a store has the mean of a pooled value");
  checkActivation(store.activation);
  return store;
}

static Branch branchOf(const Attr& b) {
  Branch branch{{}, {}, {}, {}, computeOf(b), 0, false};
  if (b.has("hints"))
    branch.winograd = b["hints"].integer("winograd", 0), branch.overTime = b["hints"].flag("overTime");
  if (branch.overTime && !branch.winograd) fail("octConv: the hint overTime without winograd");
  if (b.has("gated")) {
    if (!b["terms"].list().empty() || branch.compute != Compute::f32 || branch.winograd)
      fail("octConv: a branch with a gate has no terms and computes in f32");
    branch.gated = {indexOf(b["gated"]["input"]), indexOf(b["gated"]["gate"])};
  }
  for (const Attr& t : b["terms"].list()) {
    Term term{{}, textOf(t, "bias"), textOf(t, "batchNorm"), t.number("eps", 1e-5), t.flag("scaleOnly")};
    if (term.scaleOnly && !term.bias.empty()) fail("octConv: a term with a bias and a scale alone");
    for (const Attr& s : t["sources"].list()) term.sources.push_back(sourceOf(s));
    if (term.sources.empty()) fail("octConv: a term has no sources");
    branch.terms.push_back(std::move(term));
  }
  if (branch.terms.empty() && !branch.gated) fail("octConv: a branch has no terms");
  if (b.has("residual")) branch.residual = indexOf(b["residual"]);
  for (const Attr& s : b["stores"].list()) branch.stores.push_back(storeOf(s));
  return branch;
}

std::vector<Branch> branchesOf(const Attr& attrs) {
  std::vector<Branch> branches;
  for (const Attr& b : attrs["branches"].list()) branches.push_back(branchOf(b));
  if (branches.empty()) fail("octConv: no branches");
  return branches;
}

Branch oneBranchOf(const Attr& attrs) {
  std::vector<Branch> branches = branchesOf(attrs);
  if (branches.size() != 1) fail("octConv: ", branches.size(), " branches to be packed at once, wanted 1");
  return std::move(branches[0]);
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

// y has the size that a source makes, and as many channels as the first store.
Shape shapeOf(const Branch& branch, const Node& node) {
  if (branch.stores.empty()) fail("octConv: '", node.name, "' has a branch without stores");
  const int64_t channels = node.out(branch.stores[0].output).c;
  for (const Store& store : branch.stores)
    if (store.pool == 0 && !store.mean) return node.out(store.output);
  if (branch.gated) return node.in(branch.gated->input);
  std::optional<Shape> y;
  branch.eachSource([&](const Source& s) {
    if (!y && !s.upsample) y = convolved(halved(node.in(s.input), s.pool), s, channels);
  });
  if (!y) fail("octConv: '", node.name, "' upsamples and stores only pooled values or means");
  return *y;
}

static void checkSource(const Node& node, const Branch& branch, const Source& s, const Shape& y) {
  const Shape x = halved(node.in(s.input), s.pool);
  if (x.c % s.groups || y.c % s.groups || s.groups != branch.groups())
    fail("octConv: ", s.groups, " groups do not divide ", x.c, " input and ", y.c, " output channels of '", node.name,
         "'");
  const TensorType& type = node.inputs[s.input];
  if (type.dtype == DType::u8 && branch.compute == Compute::i8 && s.prologue.isIdentity() &&
      (type.scale != s.scale || type.zero != s.zero))
    fail("octConv: '", node.name, "' reads u8 of scale ", type.scale, " as of scale ", s.scale);
  const Shape got = convolved(x, s, y.c), wanted = s.upsample ? halved(y) : y;
  if (got != wanted)
    fail("octConv: '", node.name, "' makes ", got, " of input ", node.in(s.input), ", wanted ", wanted);
}

static void checkBranch(const Node& node, const Branch& branch) {
  const Shape y = shapeOf(branch, node);
  branch.eachSource([&](const Source& s) { checkSource(node, branch, s, y); });
  const Shape gate{y.n, 1, 1, 1, y.c};
  if (branch.gated && node.in(branch.gated->input) != y)
    fail("octConv: '", node.name, "' makes ", y, " of a gate and input ", node.in(branch.gated->input));
  if (branch.gated && node.in(branch.gated->gate) != gate)
    fail("octConv: the gate of '", node.name, "' is ", node.in(branch.gated->gate), ", wanted ", gate);
  if (branch.residual && node.in(*branch.residual) != y)
    fail("octConv: residual ", node.in(*branch.residual), " must be ", y);
  for (const Store& store : branch.stores) node.out(store.output);  // throws if there is none
  for (const Store& store : branch.stores) {
    const Shape stored = store.mean ? Shape{y.n, 1, 1, 1, y.c} : halved(y, store.pool);
    if (node.out(store.output) != stored)
      fail("octConv: a store of '", node.name, "' is ", node.out(store.output), ", wanted ", stored);
    if (store.mean && node.outputs[store.output].dtype != DType::f32)
      fail("octConv: a mean of '", node.name, "' is ", nameOf(node.outputs[store.output].dtype), ", wanted f32");
  }
}

static void check(const Node& node) {
  for (const auto* side : {&node.inputs, &node.outputs})
    for (const TensorType& type : *side) {
      if (type.dtype == DType::i8 || type.dtype == DType::i32)
        fail("octConv: '", node.name, "' has ", nameOf(type.dtype), ", wanted f32, bf16, f16 or u8");
      if (type.dtype == DType::u8 && !(type.scale > 0 && type.scale < INFINITY && type.zero >= 0 && type.zero <= 255))
        fail("octConv: '", node.name, "' has u8 of scale ", type.scale, " and zero ", type.zero);
    }
  std::vector<bool> stored(node.outputs.size(), false);
  const std::vector<Branch> branches = branchesOf(node.attrs);
  for (const Branch& branch : branches) {
    checkBranch(node, branch);
    for (const Store& store : branch.stores) {
      if (stored[store.output]) fail("octConv: output ", store.output, " of '", node.name, "' is stored twice");
      stored[store.output] = true;
    }
  }
  if (std::find(stored.begin(), stored.end(), false) != stored.end())
    fail("octConv: '", node.name, "' leaves an output unwritten");
}

static void write(std::ostream& out, const Size3& size) { out << size.t << 'x' << size.h << 'x' << size.w; }

// All of a branch that its packed form depends on: not where it reads and stores, nor clamps, strides and padding.
std::string formatOf(const Attr& attrs) {
  const Branch branch = oneBranchOf(attrs);
  std::ostringstream out;
  out.precision(17);
  const auto norm = [&](const std::string& role, double eps) {
    if (!role.empty()) out << " norm " << role << ' ' << eps;
  };
  out << static_cast<int>(branch.compute) << " winograd " << branch.winograd << (branch.overTime ? " over time" : "")
      << " groups " << branch.groups();
  for (const Term& term : branch.terms) {
    out << " term " << term.bias;
    norm(term.batchNorm, term.eps);
    if (term.scaleOnly) out << " scale";
    for (const Source& s : term.sources) {
      out << " source " << s.weight << ' ' << s.upsample << ' ' << s.scale << ' ' << s.zero << ' ';
      write(out, s.kernel);
      norm(s.prologue.batchNorm, s.prologue.eps);
    }
  }
  for (const Store& store : branch.stores) {
    out << " store";
    norm(store.activation.batchNorm, store.activation.eps);
  }
  return out.str();
}

static const Registered<Contract> contract{"octConv", {check, false}};

// --- Parameters -------------------------------------------------------------------------------------------------

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
  if (branch.gated) return 0;
  const Param& weight = paramOf(params, branch.terms.at(0).sources.at(0).weight);
  const int64_t channels = weight.shape.empty() ? 0 : weight.shape[0];
  if (channels < 1 || channels % branch.groups())
    fail("octConv: ", branch.groups(), " groups do not divide ", channels, " output channels");
  return channels;
}

int64_t inputsOf(const Source& source, const Params& params) {
  const auto& shape = paramOf(params, source.weight).shape;
  if (shape.size() < 2) fail("octConv: ", source.weight, " has rank ", shape.size(), ", wanted OIHW or OITHW");
  return shape[1];
}

// batchNorm(x + bias) as an affine function; `bias` may be empty.
static Affine normalized(const std::string& role, double eps, const std::vector<float>& bias, const Params& params,
                         int64_t channels) {
  Affine affine{std::vector<double>(channels, 1), std::vector<double>(channels, 0)};
  std::copy(bias.begin(), bias.end(), affine.shift.begin());
  if (role.empty()) return affine;
  const auto gamma = vectorOf(params, role + ".weight", channels), beta = vectorOf(params, role + ".bias", channels);
  const auto mean = vectorOf(params, role + ".running_mean", channels),
             var = vectorOf(params, role + ".running_var", channels);
  for (size_t c = 0; c < affine.scale.size(); c++) {
    affine.scale[c] = gamma[c] / std::sqrt(var[c] + eps);
    affine.shift[c] = (affine.shift[c] - mean[c]) * affine.scale[c] + beta[c];
  }
  return affine;
}

Affine affineOf(const Term& term, const Params& params, int64_t channels) {
  const auto bias = term.bias.empty() ? std::vector<float>() : vectorOf(params, term.bias, channels);
  Affine affine = normalized(term.batchNorm, term.eps, bias, params, channels);
  if (term.scaleOnly) std::fill(affine.shift.begin(), affine.shift.end(), 0);
  return affine;
}

Affine affineOf(const Activation& activation, const Params& params) {
  if (activation.batchNorm.empty()) return {};
  const int64_t channels = paramOf(params, activation.batchNorm + ".weight").elements();
  return normalized(activation.batchNorm, activation.eps, {}, params, channels);
}

const Param& weightOf(const Source& source, const Params& params, int64_t outputs) {
  const Param& param = paramOf(params, source.weight);
  const auto& shape = param.shape;
  const bool fits = shape.size() >= 2 && shape[0] == outputs && shape[1] > 0 &&
                    param.elements() == product(outputs, shape[1], source.taps());
  if (!fits)
    fail("octConv: ", source.weight, " does not have ", outputs, " output channels and ", source.taps(), " taps");
  return param;
}

std::vector<float> weightScalesOf(const Source& source, const Params& params, int64_t outputs) {
  const bool integers = paramOf(params, source.weight).dtype == DType::i8;
  return integers ? vectorOf(params, source.weight + ".scale", outputs) : std::vector<float>(outputs, 1.f);
}

}  // namespace octconv
