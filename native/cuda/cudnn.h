// cuDNN 9, libcudnn.so.9, found at run time as the driver is: convolutions as other libraries compute them, which our
// own kernels are compared with. Only what is called here is declared. OCTCONV_CUDNN names another library to open.
#pragma once
#include <compare>
#include <utility>
#include <vector>

#include "../core/tensor.h"
#include "driver.h"

namespace octconv::cuda {

// Types of cuDNN (cudnn_graph.h), by the names that they have there.
using cudnnHandle_t = struct cudnnContext*;
using cudnnBackendDescriptor_t = void*;
using cudnnStatus_t = int;  // 0: success

enum cudnnBackendDescriptorType_t : int {
  CUDNN_BACKEND_POINTWISE_DESCRIPTOR = 0,
  CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR = 1,
  CUDNN_BACKEND_ENGINE_DESCRIPTOR = 2,
  CUDNN_BACKEND_ENGINECFG_DESCRIPTOR = 3,
  CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR = 4,
  CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR = 5,
  CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR = 10,
  CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR = 13,
  CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR = 15,
  CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR = 16,
  CUDNN_BACKEND_TENSOR_DESCRIPTOR = 17,
  CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR = 38,
};
enum cudnnBackendAttributeName_t : int {
  CUDNN_ATTR_POINTWISE_MODE = 0,
  CUDNN_ATTR_POINTWISE_MATH_PREC = 1,
  CUDNN_ATTR_CONVOLUTION_COMP_TYPE = 100,
  CUDNN_ATTR_CONVOLUTION_CONV_MODE = 101,
  CUDNN_ATTR_CONVOLUTION_DILATIONS = 102,
  CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES = 103,
  CUDNN_ATTR_CONVOLUTION_POST_PADDINGS = 104,
  CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS = 105,
  CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS = 106,
  CUDNN_ATTR_ENGINEHEUR_MODE = 200,
  CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH = 201,
  CUDNN_ATTR_ENGINEHEUR_RESULTS = 202,
  CUDNN_ATTR_ENGINEHEUR_DEVICEPROP = 204,
  CUDNN_ATTR_ENGINECFG_ENGINE = 300,
  CUDNN_ATTR_EXECUTION_PLAN_HANDLE = 400,
  CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG = 401,
  CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE = 402,
  CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP = 407,
  CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA = 700,
  CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA = 701,
  CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC = 702,
  CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W = 703,
  CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X = 704,
  CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y = 705,
  CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR = 750,
  CUDNN_ATTR_OPERATION_POINTWISE_XDESC = 751,
  CUDNN_ATTR_OPERATION_POINTWISE_BDESC = 752,
  CUDNN_ATTR_OPERATION_POINTWISE_YDESC = 753,
  CUDNN_ATTR_OPERATIONGRAPH_HANDLE = 800,
  CUDNN_ATTR_OPERATIONGRAPH_OPS = 801,
  CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT = 900,
  CUDNN_ATTR_TENSOR_DATA_TYPE = 901,
  CUDNN_ATTR_TENSOR_DIMENSIONS = 902,
  CUDNN_ATTR_TENSOR_STRIDES = 903,
  CUDNN_ATTR_TENSOR_UNIQUE_ID = 906,
  CUDNN_ATTR_TENSOR_IS_VIRTUAL = 907,
  CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS = 1000,
  CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS = 1001,
  CUDNN_ATTR_VARIANT_PACK_WORKSPACE = 1003,
  CUDNN_ATTR_ENGINE_GLOBAL_INDEX = 1301,
  CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION = 2702,
};
enum cudnnBackendAttributeType_t : int {
  CUDNN_TYPE_HANDLE = 0,
  CUDNN_TYPE_DATA_TYPE = 1,
  CUDNN_TYPE_BOOLEAN = 2,
  CUDNN_TYPE_INT64 = 3,
  CUDNN_TYPE_FLOAT = 4,
  CUDNN_TYPE_VOID_PTR = 6,
  CUDNN_TYPE_CONVOLUTION_MODE = 7,
  CUDNN_TYPE_HEUR_MODE = 8,
  CUDNN_TYPE_POINTWISE_MODE = 14,
  CUDNN_TYPE_BACKEND_DESCRIPTOR = 15,
  CUDNN_TYPE_CHAR = 24,
};
enum cudnnDataType_t : int { CUDNN_DATA_FLOAT = 0, CUDNN_DATA_HALF = 2, CUDNN_DATA_BFLOAT16 = 9 };
enum cudnnConvolutionMode_t : int { CUDNN_CROSS_CORRELATION = 1 };
enum cudnnPointwiseMode_t : int { CUDNN_POINTWISE_ADD = 0, CUDNN_POINTWISE_RELU_FWD = 100 };
enum cudnnBackendHeurMode_t : int { CUDNN_HEUR_MODE_FALLBACK = 2, CUDNN_HEUR_MODE_A = 3 };

// X(result, name in the library, arguments)
#define OCTCONV_CUDNN_FUNCTIONS(X)                                                                                  \
  X(size_t, cudnnGetVersion)                                                                                        \
  X(const char*, cudnnGetErrorString, cudnnStatus_t status)                                                         \
  X(void, cudnnGetLastErrorString, char* text, size_t bytes)                                                        \
  X(cudnnStatus_t, cudnnCreate, cudnnHandle_t* handle)                                                              \
  X(cudnnStatus_t, cudnnDestroy, cudnnHandle_t handle)                                                              \
  X(cudnnStatus_t, cudnnSetStream, cudnnHandle_t handle, CUstream stream)                                           \
  X(cudnnStatus_t, cudnnBackendCreateDescriptor, cudnnBackendDescriptorType_t type,                                 \
    cudnnBackendDescriptor_t* descriptor)                                                                           \
  X(cudnnStatus_t, cudnnBackendDestroyDescriptor, cudnnBackendDescriptor_t descriptor)                              \
  X(cudnnStatus_t, cudnnBackendSetAttribute, cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name, \
    cudnnBackendAttributeType_t type, int64_t count, const void* elements)                                          \
  X(cudnnStatus_t, cudnnBackendGetAttribute, cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name, \
    cudnnBackendAttributeType_t type, int64_t most, int64_t* count, void* elements)                                 \
  X(cudnnStatus_t, cudnnBackendFinalize, cudnnBackendDescriptor_t descriptor)                                       \
  X(cudnnStatus_t, cudnnBackendExecute, cudnnHandle_t handle, cudnnBackendDescriptor_t plan,                        \
    cudnnBackendDescriptor_t pack)

struct Cudnn {
#define OCTCONV_MEMBER(result, name, ...) result (*name)(__VA_ARGS__);
  OCTCONV_CUDNN_FUNCTIONS(OCTCONV_MEMBER)
#undef OCTCONV_MEMBER
  std::string version;

  // Opened once. Throws the reason if there is none, if it lacks a function, or if it is another version than 9.
  static const Cudnn& get();
  // Throws `what` with cuDNN's name for the error, unless there is none.
  void check(cudnnStatus_t status, const std::string& what) const;
};

// cuDNN has nothing that computes this, on this GPU.
struct NotSupported : Error {
  using Error::Error;
};

// A descriptor of the backend API.
class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type);
  Descriptor(Descriptor&& other) noexcept : descriptor(std::exchange(other.descriptor, nullptr)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(descriptor, other.descriptor);
    return *this;
  }
  ~Descriptor();

  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const void* elements,
                  size_t count = 1);
  Descriptor& set(cudnnBackendAttributeName_t name, const std::vector<int64_t>& values);
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& value);
  Descriptor& finalize();

  // As many as there are; with `elements` so many are written, at most.
  int64_t get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t most, void* elements) const;
  int64_t integer(cudnnBackendAttributeName_t name) const;
  operator cudnnBackendDescriptor_t() const { return descriptor; }

 private:
  cudnnBackendDescriptor_t descriptor = nullptr;
};

// y = relu(conv(x) + residual + bias). All are of one type; sums are f32. Sizes are [N, C, H, W] or [N, C, T, H, W], of
// the weight [O, I / groups, ...]; in memory the channels come last.
struct Convolution {
  DType dtype;
  std::vector<int64_t> x, w, y, stride, padding, dilation;
  bool residual, bias, relu;  // cuDNN has no residual or ReLU without a bias
  auto operator<=>(const Convolution&) const = default;
};

// What a plan is made for: the GPU of a handle, or one that is not there, by its properties.
struct PlanTarget {
  cudnnHandle_t handle = nullptr;
  const Descriptor* properties = nullptr;
};

// How cuDNN computes a convolution.
class ConvolutionPlan {
 public:
  // The first proposal of cuDNN's heuristics that works with 256 MiB of workspace. NotSupported if there is none.
  ConvolutionPlan(const PlanTarget& target, const Convolution& convolution);

  struct Pointers {
    CUdeviceptr x, w, bias, residual, y, workspace;
  };
  // Gives the work to the handle's stream.
  void execute(cudnnHandle_t handle, const Pointers& at) const;

  bool complete = true;  // false: y is conv(x) alone, cuDNN does not have what comes after it
  size_t workspaceBytes = 0;
  int64_t engine = 0;  // its number in cuDNN, for people

 private:
  Descriptor config, plan;       // cuDNN's own frontend keeps both as well
  std::vector<int64_t> tensors;  // that it reads and writes
};

}  // namespace octconv::cuda
