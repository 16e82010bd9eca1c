#include "cudnn.h"

#include <dlfcn.h>

#include <cstdlib>
#include <memory>

namespace octconv::cuda {

// --- The library -----------------------------------------------------------------------------------------------------

static std::string numberOf(size_t version) {
  const size_t major = version < 10000 ? 1000 : 10000;  // 8907 is 8.9.7, 90100 is 9.1.0
  return std::to_string(version / major) + '.' + std::to_string(version % major / 100) + '.' +
         std::to_string(version % 100);
}

static Cudnn open() {
  const char* given = std::getenv("OCTCONV_CUDNN");
  if (given && !*given) given = nullptr;
  const char* file = given ? given : "libcudnn.so.9";
  void* library = dlopen(file, RTLD_NOW | RTLD_LOCAL);  // never closed
  if (!library) {
    const char* why = given ? dlerror() : "libcudnn.so.9 is not there";
    fail("cudnn: no cuDNN: ", why);
  }
  Cudnn cudnn{};
  cudnn.cudnnGetVersion = reinterpret_cast<size_t (*)()>(dlsym(library, "cudnnGetVersion"));
  if (!cudnn.cudnnGetVersion) fail("cudnn: ", file, " has no cudnnGetVersion");
  const size_t version = cudnn.cudnnGetVersion();
  if (version / 10000 != 9) fail("cudnn: ", file, " is cuDNN ", numberOf(version), ", wanted 9.0 or newer, below 10");
#define OCTCONV_FIND(result, name, ...)                                       \
  cudnn.name = reinterpret_cast<decltype(cudnn.name)>(dlsym(library, #name)); \
  if (!cudnn.name) fail("cudnn: ", file, " has no ", #name);
  OCTCONV_CUDNN_FUNCTIONS(OCTCONV_FIND)
#undef OCTCONV_FIND
  cudnn.version = numberOf(version);
  return cudnn;
}

const Cudnn& Cudnn::get() {
  static const Cudnn cudnn = open();  // after an error the next call tries again
  return cudnn;
}

void Cudnn::check(cudnnStatus_t status, const std::string& what) const {
  if (status == 0) return;
  char text[512] = {};
  cudnnGetLastErrorString(text, sizeof text);
  const std::string whole =
      oneLine(what + ": " + cudnnGetErrorString(status) + (*text ? std::string(", ") + text : ""));
  constexpr int category = 1000, notSupported = 3;
  if (status / category == notSupported) throw NotSupported(whole);
  throw Error(whole);
}

// --- Descriptors -----------------------------------------------------------------------------------------------------

Descriptor::Descriptor(cudnnBackendDescriptorType_t type) {
  const Cudnn& cudnn = Cudnn::get();
  cudnn.check(cudnn.cudnnBackendCreateDescriptor(type, &descriptor), "cudnn: a descriptor");
}
Descriptor::~Descriptor() {
  if (descriptor) Cudnn::get().cudnnBackendDestroyDescriptor(descriptor);
}

Descriptor& Descriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const void* elements,
                            size_t count) {
  const Cudnn& cudnn = Cudnn::get();
  cudnn.check(cudnn.cudnnBackendSetAttribute(descriptor, name, type, static_cast<int64_t>(count), elements),
              "cudnn: attribute " + std::to_string(name));
  return *this;
}
Descriptor& Descriptor::set(cudnnBackendAttributeName_t name, const std::vector<int64_t>& values) {
  return set(name, CUDNN_TYPE_INT64, values.data(), values.size());
}
Descriptor& Descriptor::set(cudnnBackendAttributeName_t name, const Descriptor& value) {
  return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, &value.descriptor);
}
Descriptor& Descriptor::finalize() {
  const Cudnn& cudnn = Cudnn::get();
  cudnn.check(cudnn.cudnnBackendFinalize(descriptor), "cudnn: a descriptor");
  return *this;
}

int64_t Descriptor::get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t most,
                        void* elements) const {
  const Cudnn& cudnn = Cudnn::get();
  int64_t count = 0;
  cudnn.check(cudnn.cudnnBackendGetAttribute(descriptor, name, type, most, &count, elements),
              "cudnn: attribute " + std::to_string(name));
  return count;
}
int64_t Descriptor::integer(cudnnBackendAttributeName_t name) const {
  int64_t value = 0;
  get(name, CUDNN_TYPE_INT64, 1, &value);
  return value;
}

// --- Plans -----------------------------------------------------------------------------------------------------------

namespace {

constexpr int64_t mostWorkspaceBytes = int64_t{256} << 20, alignment = 16;

enum Tensor : int64_t { x = 1, w, bias, residual, y, between };  // their numbers in graphs; the last one of many

cudnnDataType_t typeOf(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CUDNN_DATA_FLOAT;
    case DType::f16:
      return CUDNN_DATA_HALF;
    case DType::bf16:
      return CUDNN_DATA_BFLOAT16;
    default:
      fail("cudnn: ", nameOf(dtype), ", wanted f32, f16 or bf16");
  }
}

// The operations of a convolution, all of them or the product alone, in the order of cuDNN's own patterns.
class Graph {
 public:
  Graph(const PlanTarget& target, const Convolution& convolution, bool complete) : c(convolution) {
    left = 1 + (complete ? c.residual + c.bias + c.relu : 0);
    multiply();
    if (complete && c.residual) put(CUDNN_POINTWISE_ADD, &tensor(residual, c.y));
    if (complete && c.bias) {
      std::vector<int64_t> size(c.y.size(), 1);
      size[1] = c.y[1];
      put(CUDNN_POINTWISE_ADD, &tensor(bias, size));
    }
    if (complete && c.relu) put(CUDNN_POINTWISE_RELU_FWD, nullptr);
    if (target.handle) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, &target.handle);
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, operations.data(), operations.size());
    graph.finalize();
  }

  Descriptor graph{CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR};
  std::vector<int64_t> tensors;  // that are in memory

 private:
  void multiply() {
    constexpr cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    Descriptor& convolution = add(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)
                                  .set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, {static_cast<int64_t>(c.stride.size())})
                                  .set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, &sums)
                                  .set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, &mode)
                                  .set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, c.padding)
                                  .set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, c.padding)
                                  .set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, c.stride)
                                  .set(CUDNN_ATTR_CONVOLUTION_DILATIONS, c.dilation)
                                  .finalize();
    constexpr float one = 1, zero = 0;
    operation(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, &one)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, &zero)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, convolution)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, tensor(x, c.x))
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, tensor(w, c.w))
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, result())
        .finalize();
  }
  void put(cudnnPointwiseMode_t mode, const Descriptor* other) {
    Descriptor& function = add(CUDNN_BACKEND_POINTWISE_DESCRIPTOR)
                               .set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, &mode)
                               .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, &sums)
                               .finalize();
    Descriptor& op = operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, function).set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, *last);
    if (other) op.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *other);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, result()).finalize();
  }

  Descriptor& add(cudnnBackendDescriptorType_t type) { return *held.emplace_back(std::make_unique<Descriptor>(type)); }
  Descriptor& operation(cudnnBackendDescriptorType_t type) {
    Descriptor& op = add(type);
    operations.push_back(op);
    return op;
  }
  // Of the next operation: f32 that is never in memory, or at the end y.
  const Descriptor& result() { return *(last = &tensor(--left == 0 ? y : between, c.y)); }
  const Descriptor& tensor(Tensor number, const std::vector<int64_t>& size) {
    std::vector<int64_t> strides(size.size());
    strides[1] = 1;
    int64_t stride = size[1];
    for (size_t i = size.size() - 1; i > 1; i--) strides[i] = stride, stride = product(stride, size[i]);
    strides[0] = stride;
    const bool isVirtual = number == between;
    const cudnnDataType_t type = isVirtual ? sums : typeOf(c.dtype);
    if (!isVirtual) tensors.push_back(number);
    return add(CUDNN_BACKEND_TENSOR_DESCRIPTOR)
        .set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, &type)
        .set(CUDNN_ATTR_TENSOR_DIMENSIONS, size)
        .set(CUDNN_ATTR_TENSOR_STRIDES, strides)
        .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, {alignment})
        .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, {number + (isVirtual ? left : 0)})
        .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, &isVirtual)
        .finalize();
  }

  static constexpr cudnnDataType_t sums = CUDNN_DATA_FLOAT;
  const Convolution& c;
  int left;                          // operations to be added
  const Descriptor* last = nullptr;  // the value computed so far
  std::vector<std::unique_ptr<Descriptor>> held;
  std::vector<cudnnBackendDescriptor_t> operations;
};

// What the heuristics propose, the best first.
std::vector<Descriptor> configsFor(const PlanTarget& target, const Descriptor& graph, cudnnBackendHeurMode_t mode) {
  Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
      .set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, &mode);
  if (target.properties) heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, *target.properties);
  heuristics.finalize();
  const int64_t count = heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, nullptr);
  std::vector<Descriptor> configs;
  std::vector<cudnnBackendDescriptor_t> results;
  for (int64_t i = 0; i < count; i++) results.push_back(configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
  const int64_t found =
      heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, results.data());
  while (static_cast<int64_t>(configs.size()) > found) configs.pop_back();
  return configs;
}

int64_t engineOf(const Descriptor& config) {
  const Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t result = engine;
  config.get(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &result);
  return engine.integer(CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
}

}  // namespace

// The whole comes before the product alone, which takes one pass over y more. What the heuristics only fall back to is
// slow.
ConvolutionPlan::ConvolutionPlan(const PlanTarget& target, const Convolution& c)
    : config(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR), plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
  std::string why = "cudnn: it has no engine for this";
  const auto attempt = [&](cudnnBackendHeurMode_t mode, bool whole) {
    const Graph graph(target, c, whole);
    for (Descriptor& proposal : configsFor(target, graph.graph, mode)) {
      Descriptor made(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      if (target.handle) made.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, &target.handle);
      if (target.properties) made.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, *target.properties);
      made.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, proposal);
      try {
        made.finalize();
      } catch (const Error& error) {  // not all that is proposed works
        why = error.what();
        continue;
      }
      const int64_t bytes = made.integer(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
      if (bytes > mostWorkspaceBytes) {
        why = "cudnn: workspace of " + std::to_string(bytes) + " bytes, wanted at most " +
              std::to_string(mostWorkspaceBytes);
        continue;
      }
      complete = whole, workspaceBytes = static_cast<size_t>(bytes), engine = engineOf(proposal);
      config = std::move(proposal), plan = std::move(made), tensors = graph.tensors;
      return true;
    }
    return false;
  };
  const bool alone = !c.residual && !c.bias && !c.relu;
  for (const auto mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK})
    for (const bool whole : {true, false}) {
      if (alone && !whole) continue;
      try {
        if (attempt(mode, whole)) return;
      } catch (const NotSupported& error) { why = error.what(); }
    }
  throw NotSupported(why);
}

void ConvolutionPlan::execute(cudnnHandle_t handle, const Pointers& at) const {
  const Cudnn& cudnn = Cudnn::get();
  const CUdeviceptr pointers[] = {at.x, at.w, at.bias, at.residual, at.y};  // in the order of Tensor
  std::vector<CUdeviceptr> given;
  for (const int64_t tensor : tensors) given.push_back(pointers[tensor - x]);
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, tensors)
      .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, given.data(), given.size())
      .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, &at.workspace)
      .finalize();
  cudnn.check(cudnn.cudnnBackendExecute(handle, plan, pack), "cudnn: a convolution");
}

}  // namespace octconv::cuda
