// octConv by cuDNN: one convolution of one input, with bias, residual and ReLU. The graph passes of such a device leave
// nothing else in a step (lib/graph/fuse.ts).
#include "cudnn.h"

#include <algorithm>

#include "../../core/threads.h"
#include "../../cuda/convolutions.h"
#include "../../cuda/items.h"
#include "../../cuda/kernel.h"
#include "contract.h"

namespace octconv::cuda {
namespace {

// Of the type that is multiplied.
struct CudnnBranch : Packed {
  std::shared_ptr<Convolutions> convolutions;
  DType dtype;
  int64_t outputs, inputs, taps;  // inputs: of a group
  bool hasBias;
  size_t bias = 0;  // behind the weights: [O][taps][I / groups]
  Block memory;
  size_t bytes() const override { return memory.size(); }
};

const Source& onlySource(const Branch& branch) {
  const auto refuse = [](const char* what) { fail("octConv: no kernel for ", what, " on cudnn"); };
  if (branch.gated) refuse("a gate");
  if (branch.compute == Compute::i8) refuse("i8");
  if (branch.terms.size() != 1 || branch.terms[0].sources.size() != 1) refuse("several sources");
  const Source& source = branch.terms[0].sources[0];
  if (source.pool || source.upsample || !source.prologue.isIdentity()) refuse("a source with pooling or a prologue");
  if (branch.stores.size() != 1 || branch.stores[0].pool || branch.stores[0].mean) refuse("stores of other values");
  Activation relu;
  relu.least = 0;
  const Activation& activation = branch.stores[0].activation;
  if (activation != relu && activation != Activation{}) refuse("an activation other than ReLU");
  return source;
}

std::shared_ptr<const Packed> pack(Gpu& gpu, const Attr& attrs, const Params& params, Crew& crew) {
  const Branch branch = oneBranchOf(attrs);
  const Source& source = onlySource(branch);
  const Term& term = branch.terms[0];
  auto packed = std::make_shared<CudnnBranch>();
  packed->convolutions = gpu.convolutions();
  packed->dtype = operandType(branch.compute);
  packed->outputs = outputChannels(branch, params);
  packed->inputs = inputsOf(source, params), packed->taps = source.taps();
  packed->hasBias = !term.bias.empty() || (!term.batchNorm.empty() && !term.scaleOnly);
  const Affine affine = affineOf(term, params, packed->outputs);
  const Param& weight = weightOf(source, params, packed->outputs);
  const std::vector<float> scales = weightScalesOf(source, params, packed->outputs);

  const int64_t inputs = packed->inputs, taps = packed->taps, each = product(inputs, taps);
  const auto size = static_cast<int64_t>(bytesOf(packed->dtype));
  Layout layout;
  layout.add(static_cast<size_t>(product(packed->outputs, each, size)));
  packed->bias = layout.add(static_cast<size_t>(product(packed->outputs, size)));
  const Block pinned(gpu, layout.size(), Block::Where::pinned);
  const TensorType type{packed->dtype, {}};
  crew.parallel(packed->outputs, [&](int64_t o, int) {
    const std::vector<float> w = weight.floats(o * each, each);
    const auto factor = static_cast<float>(affine.scale[o] * scales[o]);
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t i = 0; i < inputs; i++)
        setValue(pinned.host(), type, o * each + tap * inputs + i, w[i * taps + tap] * factor);
    setValue(pinned.host() + packed->bias, type, o, static_cast<float>(affine.shift[o]));
  });
  packed->memory = uploaded(gpu, pinned);
  return packed;
}

Convolution convolutionOf(const Node& node, const Branch& branch, const Source& source, const CudnnBranch& packed) {
  const Shape x = node.in(source.input), y = shapeOf(branch, node);
  // Nothing happens along time: frames are images.
  const bool flat = source.kernel.t == 1 && source.stride.t == 1 && source.padding.t == 0;
  const auto space = [&](std::vector<int64_t> first, const Size3& size) {
    if (!flat) first.push_back(size.t);
    first.insert(first.end(), {size.h, size.w});
    return first;
  };
  const auto sizes = [&](const Shape& s) { return space({flat ? product(s.n, s.t) : s.n, s.c}, Size3(s.t, s.h, s.w)); };
  const bool relu = branch.stores[0].activation.least == 0, residual = branch.residual.has_value();
  return {packed.dtype,
          sizes(x),
          space({y.c, x.c / source.groups}, source.kernel),
          sizes(y),
          space({}, source.stride),
          space({}, source.padding),
          space({}, source.dilation),
          residual,
          packed.hasBias || relu || residual,
          relu};
}

Made make(const PlacedNode& placed) {
  const Node& node = placed.node;
  const std::vector<Branch> branches = branchesOf(node.attrs);
  if (branches.size() != 1) fail("octConv: no kernel for ", branches.size(), " branches on cudnn");
  const Branch& branch = branches[0];
  const Source& source = onlySource(branch);
  const auto& packed = node.weights<CudnnBranch>();
  const Shape x = node.in(source.input), y = shapeOf(branch, node);
  if (packed.dtype != operandType(branch.compute) || packed.outputs != y.c || packed.inputs != x.c / source.groups ||
      packed.taps != source.taps())
    fail("octConv: the weights given to '", node.name, "' were packed for another layer");
  const Convolution convolution = convolutionOf(node, branch, source, packed);
  std::shared_ptr<const ConvolutionPlan> plan;
  try {
    plan = packed.convolutions->plan(convolution);
  } catch (const NotSupported& error) {
    fail("octConv '", node.name, "', a convolution of ", x, " to ", y, " in ", nameOf(packed.dtype), ": ",
         error.what());
  }

  Made made;
  Layout scratch;
  const auto keep = [&](const Shape& shape) -> TensorArgs {
    const TensorType type{packed.dtype, shape};
    return tensorOf(type, placed.scratch + static_cast<int64_t>(scratch.add(type.bytes())));
  };
  const auto launch = [&](const TensorArgs& from, const TensorArgs& to, int64_t elements) -> EpilogueArgs {
    return {from, to, {}, elements, nullptr, false, false};
  };
  const auto put = [&](const EpilogueArgs& args) {
    made.launches.push_back(launchItems("convEpilogue", args.elements, args));
  };
  // As the type that is multiplied.
  const auto read = [&](size_t input) {
    if (node.inputs[input].dtype == packed.dtype) return placed.inputs[input];
    const TensorArgs to = keep(node.in(input));
    put(launch(placed.input(input), to, node.in(input).elements()));
    return to.at;
  };
  const size_t output = branch.stores[0].output;
  const bool direct = plan->complete && node.outputs[output].dtype == packed.dtype;
  const int64_t from = read(source.input);
  const int64_t residual = branch.residual && plan->complete ? read(*branch.residual) : 0;
  const TensorArgs to = direct ? placed.output(output) : keep(y);
  constexpr int64_t aligned = 256;  // as memory that the driver gives
  const auto free = placed.scratch + static_cast<int64_t>(scratch.add(plan->workspaceBytes + aligned));
  const int64_t workspace = (free + aligned - 1) / aligned * aligned;
  const CUdeviceptr weights = packed.memory.device();
  made.algorithm = "cuDNN engine " + std::to_string(plan->engine);
  made.launches.push_back(
      {{made.algorithm, 0, 0, 0},
       {},
       [=, name = node.name, convolutions = packed.convolutions, bias = weights + packed.bias, to = to.at](
           CUdeviceptr arena, CUstream stream) {
         try {
           convolutions->execute(*plan, {arena + from, weights, bias, arena + residual, arena + to, arena + workspace},
                                 stream);
         } catch (const Error& error) { fail("octConv '", name, "': ", error.what()); }
       }});
  if (!direct) {
    EpilogueArgs args = launch(to, placed.output(output), y.elements());
    if (!plan->complete) {
      args.relu = convolution.relu, args.hasResidual = convolution.residual;
      if (convolution.residual) args.residual = placed.input(*branch.residual);
      if (packed.hasBias) args.bias = reinterpret_cast<const void*>(weights + packed.bias);
      made.algorithm += " and convEpilogue";
    }
    put(args);
  }
  made.scratchBytes = scratch.size();
  return made;
}

const Registered<CudnnKernels> kernels{"octConv", {{make, floats, pack, formatOf}}};

}  // namespace
}  // namespace octconv::cuda
