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
// upsample }], bias?, batchNorm?, eps? }], residual?, low?, high?, outputs: [y, P(y)?, P(P(y))?] }, where `input`,
// `residual` and `outputs` are positions in the node's inputs and outputs; `weight`, `bias` and `batchNorm` are roles
// of parameters. Weights are OIHW or OITHW. f32.
#include <cmath>
#include <optional>

#include "../core/memory.h"
#include "../core/op.h"
#include "../cpu/halve.h"
#include "../cpu/levels.h"
#include "../cpu/tile.h"

OCTCONV_DECLARE(extern const TileSet tileSet)

namespace octconv {
namespace {

// --- The contract -----------------------------------------------------------------------------------------------

struct Source {
  size_t input;
  std::string weight;
  Size3 kernel, stride, padding, dilation;
  int64_t groups, pool;  // pool: how often P is applied to the input first
  bool upsample;         // U is applied to the product
  int64_t taps() const { return kernel.product(); }
};

struct Term {
  std::vector<Source> sources;
  std::string bias, batchNorm;
  double eps;
};

struct Branch {
  std::vector<Term> terms;
  std::optional<size_t> residual;
  float low, high;
  std::vector<size_t> outputs;

  template <class F>
  void eachSource(F&& visit) const {
    for (const Term& term : terms)
      for (const Source& source : term.sources) visit(source);
  }
  int64_t groups() const { return terms.at(0).sources.at(0).groups; }
};

Size3 sizeOf(const Attr& attr, const char* key, int64_t otherwise) {
  return attr.has(key) ? Size3(attr[key]) : Size3(otherwise, otherwise, otherwise);
}

std::vector<Branch> branchesOf(const Attr& attrs) {
  std::vector<Branch> branches;
  for (const Attr& b : attrs["branches"].list()) {
    Branch branch{
        {}, {}, static_cast<float>(b.number("low", -INFINITY)), static_cast<float>(b.number("high", INFINITY)), {}};
    for (const Attr& t : b["terms"].list()) {
      Term term{{},
                t.has("bias") ? t["bias"].text() : "",
                t.has("batchNorm") ? t["batchNorm"].text() : "",
                t.number("eps", 1e-5)};
      for (const Attr& s : t["sources"].list())
        term.sources.push_back({static_cast<size_t>(s["input"].integer()), s["weight"].text(), Size3(s["kernel"]),
                                sizeOf(s, "stride", 1), sizeOf(s, "padding", 0), sizeOf(s, "dilation", 1),
                                s.integer("groups", 1), s.integer("pool", 0), s.flag("upsample")});
      branch.terms.push_back(std::move(term));
    }
    if (b.has("residual")) branch.residual = static_cast<size_t>(b["residual"].integer());
    for (const Attr& output : b["outputs"].list()) branch.outputs.push_back(static_cast<size_t>(output.integer()));
    branches.push_back(std::move(branch));
  }
  return branches;
}

Shape halved(Shape shape, int64_t times = 1) {
  for (; times > 0; times--) shape.h = half(shape.h), shape.w = half(shape.w);
  return shape;
}

Shape convolved(const Shape& x, const Source& s, int64_t channels) {
  const auto size = [](int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    const int64_t span = in + 2 * padding - dilation * (kernel - 1) - 1;
    return span < 0 ? 0 : span / stride + 1;
  };
  return {x.n, size(x.t, s.kernel.t, s.stride.t, s.padding.t, s.dilation.t),
          size(x.h, s.kernel.h, s.stride.h, s.padding.h, s.dilation.h),
          size(x.w, s.kernel.w, s.stride.w, s.padding.w, s.dilation.w), channels};
}

void check(const Node& node, const std::vector<Branch>& branches) {
  node.wantF32();
  for (const Branch& branch : branches) {
    if (branch.outputs.empty() || branch.outputs.size() > 3)
      fail("octConv: a branch has 1 to 3 outputs, got ", branch.outputs.size());
    const Shape y = node.out(branch.outputs[0]);
    branch.eachSource([&](const Source& s) {
      const Shape x = halved(node.in(s.input), s.pool), got = convolved(x, s, y.c);
      for (const Size3& size : {s.kernel, s.stride, s.dilation})
        if (size.t < 1 || size.h < 1 || size.w < 1) fail("octConv: kernel, stride and dilation must be positive");
      if (s.padding.t < 0 || s.padding.h < 0 || s.padding.w < 0 || s.pool < 0 || s.pool > 2)
        fail("octConv: padding or pool out of range");
      if (s.groups < 1 || x.c % s.groups || y.c % s.groups || s.groups != branch.groups())
        fail("octConv: ", s.groups, " groups do not divide ", x.c, " input and ", y.c, " output channels of '",
             node.name, "'");
      if (got != (s.upsample ? halved(y) : y))
        fail("octConv: '", node.name, "' makes ", got, " of input ", node.in(s.input), ", wanted ",
             s.upsample ? halved(y) : y);
    });
    if (branch.residual && node.in(*branch.residual) != y)
      fail("octConv: residual ", node.in(*branch.residual), " must be ", y);
    for (size_t k = 1; k < branch.outputs.size(); k++)
      if (node.out(branch.outputs[k]) != halved(y, k))
        fail("octConv: pooled output ", node.out(branch.outputs[k]), " must be ", halved(y, k));
  }
}

const Param& paramOf(const Params& params, const std::string& role) {
  const auto found = params.find(role);
  if (found == params.end()) fail("octConv: parameter '", role, "' is missing");
  return found->second;
}

std::vector<float> vectorOf(const Params& params, const std::string& role, int64_t channels) {
  const Param& param = paramOf(params, role);
  if (param.elements() != channels) fail("octConv: ", role, " has ", param.elements(), " elements, wanted ", channels);
  return param.floats();
}

int64_t outputChannels(const Branch& branch, const Params& params) {
  const Param& weight = paramOf(params, branch.terms.at(0).sources.at(0).weight);
  return weight.shape.empty() ? 0 : weight.shape[0];
}

// Batch normalisation in evaluation mode as y = scale * x + shift, per output channel; the term's bias included.
struct Affine {
  std::vector<double> scale, shift;
};

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

// The weight of a source as f32 [O, I / groups, taps], its shape checked.
std::vector<float> weightOf(const Source& source, const Params& params, int64_t outputs) {
  const Param& param = paramOf(params, source.weight);
  const auto& shape = param.shape;
  const bool fits = shape.size() >= 2 && shape[0] == outputs && shape[1] > 0 &&
                    param.elements() == outputs * shape[1] * source.taps();
  if (!fits)
    fail("octConv: ", source.weight, " does not have ", outputs, " output channels and ", source.taps(), " taps");
  return param.floats();
}

// --- The slow reference: the specification ----------------------------------------------------------------------

struct PlainWeights : Packed {
  struct PerTerm {
    std::vector<std::vector<float>> sources;
    Affine affine;
  };
  std::vector<std::vector<PerTerm>> branches;
  size_t bytes() const override {
    size_t floats = 0;
    for (const auto& branch : branches)
      for (const auto& term : branch)
        for (const auto& source : term.sources) floats += source.size();
    return floats * 4;
  }
};

// P, applied `times` times.
std::vector<float> pooled(const float* x, Shape shape, int64_t times) {
  std::vector<float> in(x, x + shape.elements());
  for (; times > 0; times--) {
    const Shape s = halved(shape);
    std::vector<float> out(s.elements());
    for (int64_t r = 0; r < s.rows(); r++)
      for (int64_t xo = 0; xo < s.w; xo++)
        for (int64_t c = 0; c < s.c; c++) {
          double sum = 0;
          int count = 0;
          for (int64_t y = r % s.h * 2; y < std::min(shape.h, r % s.h * 2 + 2); y++)
            for (int64_t xi = xo * 2; xi < std::min(shape.w, xo * 2 + 2); xi++, count++)
              sum += in[((r / s.h * shape.h + y) * shape.w + xi) * s.c + c];
          out[(r * s.w + xo) * s.c + c] = static_cast<float>(sum / count);
        }
    in = std::move(out);
    shape = s;
  }
  return in;
}

void reference(const Node& node, const std::vector<Branch>& branches, Run& run) {
  const auto& plain = node.weights<PlainWeights>();
  for (size_t b = 0; b < branches.size(); b++) {
    const Branch& branch = branches[b];
    const Shape ys = node.out(branch.outputs[0]);
    float* y = run.out<float>(branch.outputs[0]);
    std::vector<double> total(ys.elements(), 0);
    for (size_t t = 0; t < branch.terms.size(); t++) {
      const Term& term = branch.terms[t];
      const Affine& affine = plain.branches[b][t].affine;
      std::vector<double> sum(total.size(), 0);
      for (size_t i = 0; i < term.sources.size(); i++) {
        const Source& s = term.sources[i];
        const Shape xs = halved(node.in(s.input), s.pool);
        const std::vector<float> x = pooled(run.in<float>(s.input), node.in(s.input), s.pool);
        const std::vector<float>& w = plain.branches[b][t].sources[i];
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
              sum[(row * ys.w + column) * ys.c + o] += acc;
            }
        });
      }
      for (size_t i = 0; i < sum.size(); i++) total[i] += affine.scale[i % ys.c] * sum[i] + affine.shift[i % ys.c];
    }
    for (size_t i = 0; i < total.size(); i++) {
      const double x = total[i] + (branch.residual ? run.in<float>(*branch.residual)[i] : 0.);
      y[i] = static_cast<float>(x < branch.low ? branch.low : x > branch.high ? branch.high : x);
    }
    for (size_t k = 1; k < branch.outputs.size(); k++) {
      const std::vector<float> small = pooled(y, ys, k);
      std::copy(small.begin(), small.end(), run.out<float>(branch.outputs[k]));
    }
  }
}

// --- The fast kernel --------------------------------------------------------------------------------------------
//
// A task computes a block of output pixels (whole rows, or whole images where they are small) for some panels of
// output channels (1 to 4 vectors each). For each panel:
//   1. conv(xL; Wlh) of the low pixels under the block goes into T, a few KB that stay in the L1 cache;
//   2. the register tiles of the block START from their T (upsampling costs a load), add up all other sources,
//      add the residual, clamp and store;
//   3. P(y) is taken from the rows just stored.
// Nothing is shared between tasks, so neither a barrier nor the thread count can change a bit.
//
// Two sources need preparing, in a pass over the input before the tasks: a pooled input whose producer could not
// write P(x) as a by-product (a network's own input), and an input of few channels under a wide kernel (the stem's
// 7x7 over RGB), which is copied with its padding so that a row of taps is one tap of kernel.w * C channels.

struct Panel {
  int64_t begin, channels, vectors, group;  // group: of the first channel
  size_t weights, low;                      // offsets into the packed floats: main sources, upsampled sources
};

struct PackedWeights : Packed {
  struct PerBranch {
    bool depthwise;
    std::vector<Panel> panels;
    size_t bias;                        // offset of maxVectors * lanes floats per panel
    int64_t mainProducts, lowProducts;  // per output channel
  };
  std::vector<PerBranch> branches;
  Memory memory;
  size_t bytes() const override { return memory.size(); }
  const float* at(size_t offset) const { return memory.floats() + offset; }
};

const TileSet& tiles() { return *OCTCONV_PICK(tileSet); }

// Splits a group's channels into panels of nearly equal vectors: pairs first, since 6 x 2 is the best AVX2 tile.
std::vector<Panel> panelsOf(int64_t channels, int64_t groups, bool depthwise) {
  const TileSet& set = tiles();
  std::vector<Panel> panels;
  for (int64_t g = 0; g < (depthwise ? 1 : groups); g++) {
    const int64_t inGroup = depthwise ? channels : channels / groups, vectors = (inGroup + set.lanes - 1) / set.lanes;
    const int64_t count = depthwise             ? vectors
                          : set.maxVectors == 3 ? std::max<int64_t>(1, vectors / 2)
                                                : (vectors + set.maxVectors - 1) / set.maxVectors;
    for (int64_t i = 0; i < count; i++) {
      const auto [first, last] = piece(vectors, count, i);
      const int64_t begin = first * set.lanes;
      panels.push_back({g * inGroup + begin, std::min(inGroup, last * set.lanes) - begin, last - first,
                        depthwise ? begin : g, 0, 0});
    }
  }
  return panels;
}

std::shared_ptr<const Packed> pack(const Attr& attrs, const Params& params, Device device) {
  const std::vector<Branch> branches = branchesOf(attrs);
  if (device == Device::reference) {
    auto plain = std::make_shared<PlainWeights>();
    for (const Branch& branch : branches) {
      const int64_t channels = outputChannels(branch, params);
      std::vector<PlainWeights::PerTerm> terms;
      for (const Term& term : branch.terms) {
        terms.push_back({{}, affineOf(term, params, channels)});
        for (const Source& source : term.sources) terms.back().sources.push_back(weightOf(source, params, channels));
      }
      plain->branches.push_back(std::move(terms));
    }
    return plain;
  }

  const TileSet& set = tiles();
  auto packed = std::make_shared<PackedWeights>();
  size_t floats = 0;
  for (const Branch& branch : branches) {
    const int64_t channels = outputChannels(branch, params), groups = branch.groups();
    if (channels < 1 || groups < 1 || channels % groups)
      fail("octConv: ", groups, " groups do not divide ", channels, " output channels");
    bool depthwise = groups > 1 && groups == channels;
    int64_t mainProducts = 0, lowProducts = 0;
    branch.eachSource([&](const Source& s) {
      const Param& weight = paramOf(params, s.weight);
      if (weight.shape.size() < 2)
        fail("octConv: ", s.weight, " has rank ", weight.shape.size(), ", wanted OIHW or OITHW");
      (s.upsample ? lowProducts : mainProducts) += weight.shape[1] * s.taps();
      depthwise = depthwise && weight.shape[1] == 1 && !s.upsample;
    });
    PackedWeights::PerBranch per{depthwise, panelsOf(channels, groups, depthwise), floats, mainProducts, lowProducts};
    floats += per.panels.size() * set.maxVectors * set.lanes;
    for (Panel& panel : per.panels) {
      const size_t width = panel.vectors * set.lanes;
      panel.weights = floats, floats += mainProducts * width;
      panel.low = floats, floats += lowProducts * width;
    }
    packed->branches.push_back(std::move(per));
  }
  packed->memory = Memory(floats * 4);
  float* memory = packed->memory.floats();
  std::fill(memory, memory + floats, 0.f);

  for (size_t b = 0; b < branches.size(); b++) {
    const Branch& branch = branches[b];
    const PackedWeights::PerBranch& per = packed->branches[b];
    const int64_t channels = outputChannels(branch, params);
    std::vector<size_t> next(per.panels.size()), nextLow(per.panels.size());
    for (size_t p = 0; p < per.panels.size(); p++) next[p] = per.panels[p].weights, nextLow[p] = per.panels[p].low;
    for (const Term& term : branch.terms) {
      const Affine affine = affineOf(term, params, channels);
      for (size_t p = 0; p < per.panels.size(); p++)
        for (int64_t c = 0; c < per.panels[p].channels; c++)
          memory[per.bias + p * set.maxVectors * set.lanes + c] +=
              static_cast<float>(affine.shift[per.panels[p].begin + c]);
      for (const Source& source : term.sources) {
        const std::vector<float> w = weightOf(source, params, channels);
        const int64_t inGroup = static_cast<int64_t>(w.size()) / channels / source.taps();
        for (size_t p = 0; p < per.panels.size(); p++) {
          const Panel& panel = per.panels[p];
          const int64_t width = panel.vectors * set.lanes;
          size_t& at = source.upsample ? nextLow[p] : next[p];
          for (int64_t c = 0; c < panel.channels; c++) {
            const int64_t o = panel.begin + c;
            const float scale = static_cast<float>(affine.scale[o]);
            float* to = memory + at + c;
            for (int64_t tap = 0; tap < source.taps(); tap++)
              for (int64_t i = 0; i < inGroup; i++, to += width)
                *to = w[(o * inGroup + i) * source.taps() + tap] * scale;
          }
          at += source.taps() * inGroup * width;
        }
      }
    }
  }
  return packed;
}

// An input as the tiles read it: the node's input, or a prepared copy in shared scratch.
struct Prepared {
  size_t input;
  int64_t pool;       // P applied this often, or
  Size3 padding;      // zeros around each plane
  Shape from, shape;  // before and after
  size_t offset;      // in shared scratch
  size_t middle;      // P(x) on the way to P(P(x))
};

struct TileSource {
  Source conv;
  int prepared;  // index, or -1: the input itself
  Shape shape;   // of what is read
  bool rowTaps;  // one tap is kernel.w * C channels (padded copy)
  int64_t taps() const { return rowTaps ? conv.kernel.t * conv.kernel.h : conv.taps(); }
};

// One sum over sources on one grid of pixels: a branch's main sources, or its upsampled ones on the low grid.
struct Sum {
  std::vector<TileSource> sources;
  Shape grid;
  std::vector<std::vector<Segment>> segments;  // by group
  int64_t taps = 0;
};

struct BranchPlan {
  Branch spec;
  const PackedWeights::PerBranch* packed;
  Sum main, low;
  // A block is `rows` rows of one plane (an image's frame), or `planes` whole planes; a task a block and a panel group.
  int64_t rows = 0, planes = 1, rowBlocks = 1, blocks = 1, panelGroups = 1;
  int64_t tasks() const { return blocks * panelGroups; }
};

struct FastPlan {
  const PackedWeights* weights;  // kept alive by the node
  std::vector<Prepared> prepared;
  std::vector<BranchPlan> branches;
  std::vector<float> zeros;  // what a tap outside reads
};

constexpr int64_t fewChannels = 16;        // below this an input under a wide kernel is copied with its padding
constexpr int64_t blockBytes = 256 << 10;  // input bytes of a block: a good part of the L2 cache
constexpr int64_t fewestPixels = 48;       // of a block: a panel's weights are read once per block
constexpr double taskFlops = 2e6;          // about 20 us: less is not worth another thread
constexpr int64_t tasksPerThread = 6;

int prepare(FastPlan& plan, const Node& node, const Source& s, bool pad, Layout& layout) {
  const Size3 padding = pad ? s.padding : Size3(0, 0, 0);
  for (size_t i = 0; i < plan.prepared.size(); i++) {
    const Prepared& p = plan.prepared[i];
    if (p.input == s.input && p.pool == s.pool && p.padding == padding) return static_cast<int>(i);
  }
  const Shape from = node.in(s.input);
  Shape shape = halved(from, s.pool);
  const size_t middle = s.pool == 2 ? layout.add(halved(from).elements() * 4) : 0;
  shape.h += 2 * padding.h, shape.w += 2 * padding.w;
  plan.prepared.push_back({s.input, s.pool, padding, from, shape, layout.add(shape.elements() * 4), middle});
  return static_cast<int>(plan.prepared.size()) - 1;
}

Sum sumOf(FastPlan& plan, const Node& node, const Branch& branch, bool low, Layout& layout) {
  Sum sum;
  const Shape y = node.out(branch.outputs[0]);
  sum.grid = low ? halved(y) : y;
  sum.segments.resize(branch.groups());
  branch.eachSource([&](const Source& s) {
    if (s.upsample != low) return;
    const Shape x = halved(node.in(s.input), s.pool);
    const bool rowTaps = x.c < fewChannels && s.kernel.w > 1 && s.groups == 1 && s.dilation.w == 1 && s.pool == 0;
    const int prepared = rowTaps || s.pool > 0 ? prepare(plan, node, s, rowTaps, layout) : -1;
    const TileSource source{s, prepared, prepared < 0 ? x : plan.prepared[prepared].shape, rowTaps};
    const int64_t channels = rowTaps ? s.kernel.w * x.c : x.c / s.groups;
    for (int64_t g = 0; g < branch.groups(); g++) sum.segments[g].push_back({source.taps(), channels, g * channels});
    sum.taps += source.taps();
    sum.sources.push_back(source);
    plan.zeros.resize(std::max<size_t>(plan.zeros.size(), std::max(x.c, channels)), 0.f);
  });
  return sum;
}

// The row pointers of pixels [first, last) of a sum's grid: rows[tap * count + pixel].
void pointTo(const FastPlan& plan, const Sum& sum, const Run& run, int64_t first, int64_t last, const float** rows) {
  const int64_t count = last - first;
  const Shape& grid = sum.grid;
  const float* zeros = plan.zeros.data();
  for (const TileSource& source : sum.sources) {
    const Source& s = source.conv;
    const Shape& x = source.shape;
    const float* base = source.prepared < 0
                            ? run.in<float>(s.input)
                            : reinterpret_cast<const float*>(run.shared + plan.prepared[source.prepared].offset);
    const int64_t columns = source.rowTaps ? 1 : s.kernel.w, padH = source.rowTaps ? 0 : s.padding.h,
                  padW = source.rowTaps ? 0 : s.padding.w;
    int64_t row = first / grid.w, column = first % grid.w;
    for (int64_t p = 0; p < count; row++, column = 0) {
      const int64_t n = row / (grid.t * grid.h), t = row / grid.h % grid.t, y = row % grid.h;
      const int64_t until = std::min(grid.w - column, count - p);
      const float** to = rows + p;
      for (int64_t kt = 0; kt < s.kernel.t; kt++) {
        const int64_t ti = t * s.stride.t - s.padding.t + kt * s.dilation.t;
        for (int64_t ky = 0; ky < s.kernel.h; ky++) {
          const int64_t yi = y * s.stride.h - padH + ky * s.dilation.h;
          const bool inside = ti >= 0 && ti < x.t && yi >= 0 && yi < x.h;
          const float* line = base + ((n * x.t + ti) * x.h + yi) * x.w * x.c;
          for (int64_t kx = 0; kx < columns; kx++, to += count) {
            const int64_t shift = kx * s.dilation.w - padW;
            for (int64_t i = 0; i < until; i++) {
              const int64_t xi = (column + i) * s.stride.w + shift;
              to[i] = inside && xi >= 0 && xi < x.w ? line + xi * x.c : zeros;
            }
          }
        }
      }
      p += until;
    }
    rows += source.taps() * count;
  }
}

// Runs one panel's tiles over `count` pixels, in tiles of nearly equal size.
void runTiles(Tile tile, const Panel& panel, bool depthwise, int64_t count) {
  const TileSet& set = tiles();
  const int64_t most = depthwise ? 4 : set.maxPixels[panel.vectors], parts = (count + most - 1) / most;
  const TileFunction* functions = depthwise ? set.depthwise : set.tiles[panel.vectors];
  const Tile base = tile;
  for (int64_t i = 0; i < parts; i++) {
    const auto [begin, end] = piece(count, parts, i);
    tile.rows = base.rows + begin;
    tile.start = base.start ? base.start + begin : nullptr;
    tile.residual = base.residual ? base.residual + begin * base.pitch : nullptr;
    tile.out = base.out + begin * base.pitch;
    functions[end - begin](tile);
  }
}

struct Scratch {  // offsets in a thread's scratch
  size_t rows, lowRows, start, low, size;
};

Scratch scratchOf(const BranchPlan& b) {
  const Shape& y = b.main.grid;
  const int64_t pixels = b.planes * b.rows * y.w;
  const int64_t lowPixels = b.low.taps ? b.planes * half(b.rows) * half(y.w) : 0;
  Layout layout;
  Scratch s{};
  s.rows = layout.add(pixels * b.main.taps * sizeof(void*));
  s.lowRows = layout.add(lowPixels * b.low.taps * sizeof(void*));
  s.start = layout.add(pixels * sizeof(void*));
  s.low = layout.add(lowPixels * tiles().maxVectors * tiles().lanes * 4);
  s.size = layout.size();
  return s;
}

void halveBlock(const Run& run, const BranchPlan& b, const Node& node, int64_t row, int64_t rowEnd,
                const Panel& panel) {
  const auto halve = OCTCONV_PICK(halveRows);
  for (size_t k = 1; k < b.spec.outputs.size(); k++) {
    const Shape from = node.out(b.spec.outputs[k - 1]), to = node.out(b.spec.outputs[k]);
    const int64_t scale = int64_t{1} << (k - 1);
    for (int64_t r = row; r < rowEnd;) {  // plane by plane
      const int64_t plane = r / b.main.grid.h, y = r % b.main.grid.h,
                    end = std::min(rowEnd - plane * b.main.grid.h, b.main.grid.h);
      const int64_t first = y / scale, last = (end + scale - 1) / scale;
      halve(run.out<float>(b.spec.outputs[k - 1]) + (plane * from.h + first) * from.w * from.c + panel.begin, from.c,
            last - first, from.w,
            run.out<float>(b.spec.outputs[k]) + (plane * to.h + first / 2) * to.w * to.c + panel.begin, to.c,
            static_cast<int>(panel.channels));
      r = plane * b.main.grid.h + end;
    }
  }
}

void runTask(const FastPlan& plan, const Node& node, const BranchPlan& b, int64_t task, const Run& run, char* memory) {
  const Shape& y = b.main.grid;
  const Scratch at = scratchOf(b);
  const TileSet& set = tiles();
  const int64_t block = task / b.panelGroups, plane = block / b.rowBlocks * b.planes;
  const int64_t row = plane * y.h + block % b.rowBlocks * b.rows;
  const int64_t rowEnd = std::min(row + b.planes * b.rows, std::min((plane + b.planes) * y.h, y.rows()));
  const int64_t first = row * y.w, count = rowEnd * y.w - first;
  const auto [panelBegin, panelEnd] =
      piece(static_cast<int64_t>(b.packed->panels.size()), b.panelGroups, task % b.panelGroups);

  auto** rows = reinterpret_cast<const float**>(memory + at.rows);
  auto** lowRows = reinterpret_cast<const float**>(memory + at.lowRows);
  auto** start = reinterpret_cast<const float**>(memory + at.start);
  float* low = reinterpret_cast<float*>(memory + at.low);
  const int64_t lowPitch = set.maxVectors * set.lanes;
  int64_t lowCount = 0;
  pointTo(plan, b.main, run, first, first + count, rows);
  if (b.low.taps) {
    const Shape& l = b.low.grid;
    const auto lowRow = [&](int64_t r) { return r / y.h * l.h + r % y.h / 2; };
    const int64_t lowFirst = lowRow(row) * l.w;
    lowCount = (lowRow(rowEnd - 1) + 1) * l.w - lowFirst;
    pointTo(plan, b.low, run, lowFirst, lowFirst + lowCount, lowRows);
    for (int64_t r = row; r < rowEnd; r++)
      for (int64_t x = 0; x < y.w; x++)
        start[(r - row) * y.w + x] = low + (lowRow(r) * l.w + x / 2 - lowFirst) * lowPitch;
  }

  float* out = run.out<float>(b.spec.outputs[0]);
  const float* residual = b.spec.residual ? run.in<float>(*b.spec.residual) : nullptr;
  for (int64_t i = panelBegin; i < panelEnd; i++) {
    const Panel& panel = b.packed->panels[i];
    const ptrdiff_t corner = first * y.c + panel.begin;
    const std::vector<Segment>& segments = b.main.segments[panel.group];
    if (b.low.taps) {
      const auto& lowSegments = b.low.segments[panel.group];
      const Tile tile{.rows = lowRows,
                      .rowStride = lowCount,
                      .segments = lowSegments.data(),
                      .segmentCount = lowSegments.size(),
                      .weights = plan.weights->at(panel.low),
                      .bias = plan.zeros.data(),
                      .start = nullptr,
                      .residual = nullptr,
                      .out = low,
                      .pitch = lowPitch,
                      .channels = panel.vectors * set.lanes,
                      .low = -INFINITY,
                      .high = INFINITY};
      runTiles(tile, panel, false, lowCount);
    }
    const Tile tile{.rows = rows,
                    .rowStride = count,
                    .segments = segments.data(),
                    .segmentCount = segments.size(),
                    .weights = plan.weights->at(panel.weights),
                    .bias = plan.weights->at(b.packed->bias + i * lowPitch),
                    .start = b.low.taps ? start : nullptr,
                    .residual = residual ? residual + corner : nullptr,
                    .out = out + corner,
                    .pitch = y.c,
                    .channels = panel.channels,
                    .low = b.spec.low,
                    .high = b.spec.high};
    runTiles(tile, panel, b.packed->depthwise, count);
    halveBlock(run, b, node, row, rowEnd, panel);
  }
}

void runPrepared(const Prepared& p, const Run& run, int64_t plane) {
  const float* x = run.in<float>(p.input) + plane * p.from.h * p.from.w * p.from.c;
  float* to = reinterpret_cast<float*>(run.shared + p.offset) + plane * p.shape.h * p.shape.w * p.shape.c;
  const int64_t c = p.from.c;
  if (p.pool > 0) {
    const auto halve = OCTCONV_PICK(halveRows);
    const Shape once = halved(p.from);
    float* middle = p.pool == 2 ? reinterpret_cast<float*>(run.shared + p.middle) + plane * once.h * once.w * c : to;
    halve(x, c, p.from.h, p.from.w, middle, c, static_cast<int>(c));
    if (p.pool == 2) halve(middle, c, once.h, once.w, to, c, static_cast<int>(c));
    return;
  }
  for (int64_t y = 0; y < p.shape.h; y++, to += p.shape.w * c) {
    const int64_t from = y - p.padding.h;
    if (from < 0 || from >= p.from.h) {
      std::fill(to, to + p.shape.w * c, 0.f);
    } else {
      std::fill(to, to + p.padding.w * c, 0.f);
      std::copy(x + from * p.from.w * c, x + (from + 1) * p.from.w * c, to + p.padding.w * c);
      std::fill(to + (p.padding.w + p.from.w) * c, to + p.shape.w * c, 0.f);
    }
  }
}

// How a branch is cut into tasks; by shape and thread count only.
void split(BranchPlan& b, int threads) {
  const Shape& y = b.main.grid;
  int64_t inputBytes = 0, weightBytes = 0;  // per output pixel; of all panels
  double flops = 0;
  for (const Sum* sum : {&b.main, &b.low})
    for (const TileSource& s : sum->sources) {
      inputBytes += s.shape.c * 4 * s.conv.stride.h * s.conv.stride.w / (s.conv.upsample ? 4 : 1);
      weightBytes += y.c * (s.shape.c / s.conv.groups) * s.conv.taps() * 4;
      flops += 2. * static_cast<double>(sum->grid.pixels() * y.c * (s.shape.c / s.conv.groups) * s.conv.taps());
    }
  const auto cut = [&](int64_t pixels) {
    // Row pairs that share a low row or a pooled row stay together. Blocks are of nearly equal size: one with the last
    // few rows would read all weights for them.
    const int64_t align = int64_t{1} << std::max<size_t>(b.spec.outputs.size() - 1, b.low.taps ? 1 : 0);
    const int64_t plane = y.h * y.w, count = std::max<int64_t>(1, (plane + pixels / 2) / pixels);
    b.planes = std::clamp<int64_t>(pixels / plane, 1, y.n * y.t);
    b.rows = std::min(y.h, ((y.h + count - 1) / count + align - 1) / align * align);
    b.rowBlocks = (y.h + b.rows - 1) / b.rows;
    b.blocks = (y.n * y.t + b.planes - 1) / b.planes * b.rowBlocks;
  };
  const int64_t wanted = std::max(fewestPixels, blockBytes / std::max<int64_t>(1, inputBytes));
  cut(wanted);
  if (threads == 1) return;
  const int64_t useful =
      std::clamp<int64_t>(static_cast<int64_t>(flops / taskFlops), 1, int64_t{tasksPerThread} * threads);
  const auto groups = [&] {
    return std::clamp<int64_t>((useful + b.blocks - 1) / b.blocks, 1, static_cast<int64_t>(b.packed->panels.size()));
  };
  // More blocks read the weights again, more panel groups the input: the larger stays whole.
  if (b.blocks < useful && (weightBytes < inputBytes * y.pixels() || groups() * b.blocks < useful))
    cut(std::max(fewestPixels, std::min(wanted, y.pixels() / useful)));
  b.panelGroups = groups();
}

Kernel make(const Node& node, Device device) {
  const std::vector<Branch> branches = branchesOf(node.attrs);
  check(node, branches);
  const auto unfit = [&] { fail("octConv: the weights given to '", node.name, "' were packed for another layer"); };
  if (device == Device::reference) {
    const auto& plain = node.weights<PlainWeights>();
    if (plain.branches.size() != branches.size()) unfit();
    for (size_t b = 0; b < branches.size(); b++) {
      if (plain.branches[b].size() != branches[b].terms.size()) unfit();
      for (size_t t = 0; t < branches[b].terms.size(); t++)
        for (size_t i = 0; i < branches[b].terms[t].sources.size(); i++) {
          const Source& s = branches[b].terms[t].sources[i];
          const int64_t c = node.out(branches[b].outputs[0]).c * (node.in(s.input).c / s.groups) * s.taps();
          if (plain.branches[b][t].sources.size() <= i ||
              static_cast<int64_t>(plain.branches[b][t].sources[i].size()) != c)
            unfit();
        }
    }
    return {[=](Run& run) { reference(node, branches, run); }};
  }

  auto plan = std::make_shared<FastPlan>();
  plan->weights = &node.weights<PackedWeights>();
  plan->zeros.resize(tiles().maxVectors * tiles().lanes, 0.f);
  if (plan->weights->branches.size() != branches.size()) unfit();
  Layout shared;
  size_t threadBytes = 0;
  std::ostringstream text;
  for (size_t i = 0; i < branches.size(); i++) {
    const PackedWeights::PerBranch& packed = plan->weights->branches[i];
    BranchPlan b{branches[i], &packed, sumOf(*plan, node, branches[i], false, shared),
                 sumOf(*plan, node, branches[i], true, shared)};
    const auto products = [](const Sum& sum) {
      int64_t count = 0;
      for (const Segment& s : sum.segments[0]) count += s.taps * s.length;
      return count;
    };
    if (products(b.main) != packed.mainProducts || products(b.low) != packed.lowProducts) unfit();
    if (packed.panels.back().begin + packed.panels.back().channels != b.main.grid.c) unfit();
    split(b, node.threads);
    threadBytes = std::max(threadBytes, scratchOf(b).size);
    const int64_t vectors = packed.panels[0].vectors;
    text << (i ? ", " : "") << (packed.depthwise ? "depthwise " : "tile ")
         << (packed.depthwise ? 4 : tiles().maxPixels[vectors]) << 'x' << vectors * tiles().lanes << ' ' << b.blocks
         << " blocks x " << b.panelGroups;
    plan->branches.push_back(std::move(b));
  }
  return {[plan, node](Run& run) {
            int64_t planes = 0, tasks = 0;
            for (const Prepared& p : plan->prepared) planes += p.from.n * p.from.t;
            run.parallel(planes, [&](int64_t task, char*) {
              for (const Prepared& p : plan->prepared) {
                if (task < p.from.n * p.from.t) return runPrepared(p, run, task);
                task -= p.from.n * p.from.t;
              }
            });
            for (const BranchPlan& b : plan->branches) tasks += b.tasks();
            run.parallel(tasks, [&](int64_t task, char* scratch) {
              for (const BranchPlan& b : plan->branches) {
                if (task < b.tasks()) return runTask(*plan, node, b, task, run, scratch);
                task -= b.tasks();
              }
            });
          },
          shared.size(), threadBytes, text.str()};
}

const Register op{"octConv", make, pack};

}  // namespace
}  // namespace octconv
