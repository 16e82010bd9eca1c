// octConv in plain loops, f32 in and f64 sums: what every other kernel is compared with.
#include "../../cpu/floats.h"
#include "contract.h"

namespace octconv {
namespace {

struct PlainBranch : Packed {
  struct Weights {
    std::vector<float> elements, scale;
    Affine prologue;
  };
  struct PerTerm {
    std::vector<Weights> sources;
    Affine affine;
  };
  std::vector<PerTerm> terms;
  std::vector<Affine> stores;
  size_t bytes() const override {
    size_t floats = 0;
    for (const auto& term : terms)
      for (const auto& source : term.sources) floats += source.elements.size();
    return floats * 4;
  }
};

// Narrow weights are those of the folded batch normalisation.
void roundFolded(PlainBranch::Weights& weights, const Affine& affine, DType dtype) {
  auto& w = weights.elements;
  const size_t each = w.size() / affine.scale.size();
  for (size_t i = 0; i < w.size(); i++) {
    const auto factor = static_cast<float>(affine.scale[i / each] * weights.scale[i / each]);
    w[i] = factor == 0 ? 0 : roundedTo(dtype, w[i] * factor) / factor;
  }
}

std::shared_ptr<const Packed> pack(const Attr& attrs, const Params& params, Crew&) {
  const Branch branch = oneBranchOf(attrs);
  const int64_t channels = outputChannels(branch, params);
  auto plain = std::make_shared<PlainBranch>();
  for (const Term& term : branch.terms) {
    plain->terms.push_back({{}, affineOf(term, params, channels)});
    auto& [sources, affine] = plain->terms.back();
    for (const Source& source : term.sources) {
      sources.push_back({weightOf(source, params, channels).floats(), weightScalesOf(source, params, channels),
                         affineOf(source.prologue, params)});
      if (branch.compute == Compute::bf16 || branch.compute == Compute::f16)
        roundFolded(sources.back(), affine, operandType(branch.compute));
    }
  }
  for (const Store& store : branch.stores) plain->stores.push_back(affineOf(store.activation, params));
  return plain;
}

double activated(const Activation& a, const Affine& affine, double x, size_t channel) {
  if (!affine.scale.empty()) x = affine.scale[channel] * x + affine.shift[channel];
  if (a.function) x = a.function->value(x, a.slope);
  return x < a.least ? a.least : x > a.most ? a.most : x;
}

// The elements of numbers when they are kept as a type.
template <class Value>
std::vector<float> elementsAs(const TensorType& type, Value&& value) {
  std::vector<float> elements(type.shape.elements());
  for (size_t i = 0; i < elements.size(); i++) {
    char element[4];
    setValue(element, type, 0, static_cast<float>(value(i)));
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
    for (int64_t p = 0; p < s.pixels(); p++)
      for (int64_t c = 0; c < s.c; c++) {
        char element[4];
        setValue(element, plain, 0,
                 static_cast<float>(pooledAt(shape, p, [&](int64_t pixel) { return x[pixel * s.c + c]; })));
        out[p * s.c + c] = elementAt(element, type.dtype, 0);
      }
    x = std::move(out);
    shape = s;
  }
  return x;
}

// What a convolution multiplies, as numbers.
std::vector<float> inputOf(const Node& node, const Branch& branch, const Source& s, const Affine& prologue, Run& run) {
  const TensorType &from = node.inputs[s.input], input{operandType(branch.compute), from.shape, s.scale, s.zero};
  std::vector<float> x = elementsAs(input, [&](size_t i) {
    return activated(s.prologue, prologue, valueAt(run.inputs[s.input], from, i), i % from.shape.c);
  });
  x = pooled(std::move(x), input, s.pool);
  for (float& element : x) element = valueOf(element, input);
  return x;
}

// Adds U?(conv(x; w)) to the sum, times a scale per output channel.
void addProducts(std::vector<double>& sum, const Source& s, const Shape& xs, const std::vector<float>& x,
                 const Shape& ys, const PlainBranch::Weights& weights, Run& run) {
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
                       weights.elements[(o * inGroup + c) * s.taps() + tap];
            }
        sum[(row * ys.w + column) * ys.c + o] += acc * weights.scale[o];
      }
  });
}

void addGated(std::vector<double>& sum, const Node& node, const Gated& gated, const Run& run) {
  const auto [input, gate] = gated;
  const Shape& x = node.in(input);
  const int64_t image = x.t * x.h * x.w * x.c;
  for (int64_t i = 0; i < x.elements(); i++)
    sum[i] += static_cast<double>(valueAt(run.inputs[input], node.inputs[input], i)) *
              static_cast<double>(valueAt(run.inputs[gate], node.inputs[gate], i / image * x.c + i % x.c));
}

void storeMean(const Node& node, const Store& store, const Shape& ys, const Run& run,
               const std::vector<double>& values) {
  const int64_t image = ys.t * ys.h * ys.w * ys.c;
  std::vector<double> sums(ys.n * ys.c, 0);
  for (int64_t i = 0; i < ys.elements(); i++) sums[i / image * ys.c + i % ys.c] += values[i];
  for (size_t i = 0; i < sums.size(); i++)
    setValue(run.outputs[store.output], node.outputs[store.output], i,
             static_cast<float>(sums[i] / static_cast<double>(image / ys.c)));
}

void reference(const Node& node, const Branch& branch, const PlainBranch& plain, Run& run) {
  const Shape ys = shapeOf(branch, node);
  std::vector<double> y(ys.elements(), 0);
  for (size_t t = 0; t < branch.terms.size(); t++) {
    std::vector<double> sum(y.size(), 0);
    for (size_t i = 0; i < branch.terms[t].sources.size(); i++) {
      const Source& s = branch.terms[t].sources[i];
      const auto& weights = plain.terms[t].sources[i];
      addProducts(sum, s, halved(node.in(s.input), s.pool), inputOf(node, branch, s, weights.prologue, run), ys,
                  weights, run);
    }
    const Affine& affine = plain.terms[t].affine;
    for (size_t i = 0; i < sum.size(); i++) y[i] += affine.scale[i % ys.c] * sum[i] + affine.shift[i % ys.c];
  }
  if (branch.gated) addGated(y, node, *branch.gated, run);
  if (branch.residual)
    for (size_t i = 0; i < y.size(); i++)
      y[i] += valueAt(run.inputs[*branch.residual], node.inputs[*branch.residual], i);
  for (size_t k = 0; k < branch.stores.size(); k++) {
    const Store& store = branch.stores[k];
    const TensorType& type = node.outputs[store.output];
    std::vector<double> values(y.size());
    for (size_t i = 0; i < y.size(); i++) values[i] = activated(store.activation, plain.stores[k], y[i], i % ys.c);
    if (store.mean) {
      storeMean(node, store, ys, run, values);
      continue;
    }
    TensorType whole = type;
    whole.shape = ys;
    const std::vector<float> elements =
        pooled(elementsAs(whole, [&](size_t i) { return values[i]; }), whole, store.pool);
    for (size_t i = 0; i < elements.size(); i++)
      setValue(run.outputs[store.output], type, i, valueOf(elements[i], type));
  }
}

// Weights that were packed for another node are an error here, not a read out of bounds later.
void checkWeights(const Node& node, const Branch& branch, const PlainBranch& plain) {
  const auto unfit = [&] { fail("octConv: the weights given to '", node.name, "' were packed for another layer"); };
  const auto fits = [&](const Activation& a, const Affine& affine, int64_t channels) {
    return static_cast<int64_t>(affine.scale.size()) == (a.batchNorm.empty() ? 0 : channels);
  };
  const Shape y = shapeOf(branch, node);
  if (plain.terms.size() != branch.terms.size() || plain.stores.size() != branch.stores.size()) unfit();
  for (size_t t = 0; t < branch.terms.size(); t++) {
    const auto& sources = plain.terms[t].sources;
    if (sources.size() != branch.terms[t].sources.size()) unfit();
    if (static_cast<int64_t>(plain.terms[t].affine.scale.size()) != y.c) unfit();
    for (size_t i = 0; i < sources.size(); i++) {
      const Source& s = branch.terms[t].sources[i];
      const int64_t elements = product(y.c, node.in(s.input).c / s.groups, s.taps());
      if (static_cast<int64_t>(sources[i].elements.size()) != elements ||
          !fits(s.prologue, sources[i].prologue, node.in(s.input).c))
        unfit();
    }
  }
  for (size_t k = 0; k < branch.stores.size(); k++)
    if (!fits(branch.stores[k].activation, plain.stores[k], y.c)) unfit();
}

Kernel make(const Node& node, int) {
  const std::vector<Branch> branches = branchesOf(node.attrs);
  for (size_t b = 0; b < branches.size(); b++) checkWeights(node, branches[b], node.weights<PlainBranch>(b));
  return {[=](Run& run) {
    for (size_t b = 0; b < branches.size(); b++) reference(node, branches[b], node.weights<PlainBranch>(b), run);
  }};
}

const Registered<Kernels<Reference>> kernels{"octConv", {make, anyElements, pack, formatOf, true}};

}  // namespace
}  // namespace octconv
