// A stand-in for cuDNN, for tests on a machine without one: build/test/libcudnn.so.9, which OCTCONV_CUDNN names. It
// goes with the stand-in for the driver (driver.cc), which OCTCONV_CUDA_DRIVER names: that one counts its calls and
// makes them fail, does its work in the order of the stream, and reports the handles and descriptors that nobody gave
// back. Convolutions are plain loops. It is strict where cuDNN documents a rule: types of attributes, what must be
// finalized, what must be there, sizes that fit, aligned pointers, a context that is current.
//
// Of each form it proposes three engines: number 1 does not work, number 2 wants 1 GiB of workspace, number 3 computes
// and writes all over its workspace. As the real one it has no engine for a residual or a ReLU without a bias.
//
// Environment:
//   OCTCONV_STAND_IN_CUDNN_VERSION  90100
//   OCTCONV_STAND_IN_CUDNN_UNCAPTURED  if it is set, its work ends a capture: that is an error
//   OCTCONV_STAND_IN_CUDNN_ENGINES  alone: it has engines for convolutions alone; none: for nothing
#include "cuda/cudnn.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

namespace octconv::cuda {

// All that cudnn.h declares is defined here.
extern "C" {
#define OCTCONV_DECLARE(result, name, ...) [[gnu::visibility("default")]] result name(__VA_ARGS__);
OCTCONV_CUDNN_FUNCTIONS(OCTCONV_DECLARE)
}
#define OCTCONV_ADDRESS(result, name, ...) reinterpret_cast<void*>(name),
[[gnu::used]] static void* const defined[] = {OCTCONV_CUDNN_FUNCTIONS(OCTCONV_ADDRESS)};

// X(name, code)
#define OCTCONV_STATUSES(X)                       \
  X(CUDNN_STATUS_SUCCESS, 0)                      \
  X(CUDNN_STATUS_BAD_PARAM, 2000)                 \
  X(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, 2002)    \
  X(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, 2004)   \
  X(CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, 2008)  \
  X(CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE, 2010)  \
  X(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, 2012) \
  X(CUDNN_STATUS_NOT_SUPPORTED, 3000)             \
  X(CUDNN_STATUS_INTERNAL_ERROR, 4000)            \
  X(CUDNN_STATUS_EXECUTION_FAILED, 5000)
#define OCTCONV_CODE(name, code) constexpr cudnnStatus_t name = code;
OCTCONV_STATUSES(OCTCONV_CODE)

namespace {

// What the stand-in for the driver has for this one.
struct StandIn {
  CUresult (*call)(const char* name, bool needsContext, bool givesBack);
  void (*hold)(int more);
  CUresult (*work)(CUstream stream, bool capturable, std::function<void()> work);

  StandIn() {
    void* const driver = dlopen(std::getenv("OCTCONV_CUDA_DRIVER"), RTLD_NOW | RTLD_NOLOAD);
    call = reinterpret_cast<decltype(call)>(dlsym(driver, "standInCall"));
    hold = reinterpret_cast<decltype(hold)>(dlsym(driver, "standInHold"));
    work = reinterpret_cast<decltype(work)>(dlsym(driver, "standInWork"));
  }
};
const StandIn& standIn() {
  static const StandIn found;
  return found;
}

using Sizes = std::vector<int64_t>;

struct Tensor {
  Sizes sizes, strides;
  cudnnDataType_t type;
  int64_t id;
};

// A graph, as loops go through it.
struct Form {
  Tensor x, w, y, residual, bias;
  Sizes stride, padding, dilation;
  bool hasResidual = false, hasBias = false, relu = false;
};

struct Object {
  cudnnBackendDescriptorType_t type;
  bool finalized = false;
  struct Attribute {
    cudnnBackendAttributeType_t type;
    std::vector<char> bytes;
  };
  std::map<cudnnBackendAttributeName_t, Attribute> attributes;
  std::shared_ptr<const Form> form;  // of a graph, and what is made of it
  int64_t engine = 0;
};

std::mutex mutex;
auto& objects = *new std::set<Object*>;
auto& handles = *new std::map<cudnnHandle_t, CUstream>;
thread_local std::string lastError;

struct Refusal {
  cudnnStatus_t status;
  std::string why;
};
[[noreturn]] void refuse(cudnnStatus_t status, const std::string& why) { throw Refusal{status, why}; }
void want(bool fine, const std::string& why, cudnnStatus_t status = CUDNN_STATUS_BAD_PARAM) {
  if (!fine) refuse(status, why);
}

template <class Body>
cudnnStatus_t call(const char* name, bool needsContext, const Body& body, bool givesBack = false) {
  const CUresult error = standIn().call(name, needsContext, givesBack);
  lastError = error ? "made to fail: error " + std::to_string(error) : "";
  if (error && !givesBack) return CUDNN_STATUS_INTERNAL_ERROR;
  const std::lock_guard lock(mutex);
  try {
    body();
  } catch (const Refusal& refusal) {
    lastError = refusal.why;
    return refusal.status;
  }
  return error ? CUDNN_STATUS_INTERNAL_ERROR : CUDNN_STATUS_SUCCESS;
}

Object& known(cudnnBackendDescriptor_t descriptor) {
  auto* const object = static_cast<Object*>(descriptor);
  want(objects.count(object) > 0, "no descriptor", CUDNN_STATUS_BAD_PARAM_NULL_POINTER);
  return *object;
}

size_t bytesOf(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return 8;
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
      return 1;
    default:
      return 4;
  }
}

template <class T>
std::vector<T> listOf(const Object& object, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type) {
  const auto found = object.attributes.find(name);
  want(found != object.attributes.end(), "attribute " + std::to_string(name) + " is missing");
  want(found->second.type == type, "attribute " + std::to_string(name) + " has another type",
       CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE);
  std::vector<T> list(found->second.bytes.size() / sizeof(T));
  std::memcpy(list.data(), found->second.bytes.data(), found->second.bytes.size());
  return list;
}
template <class T>
T valueOf(const Object& object, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type) {
  const auto list = listOf<T>(object, name, type);
  want(list.size() == 1, "attribute " + std::to_string(name) + " is a list");
  return list[0];
}
Sizes sizesOf(const Object& object, cudnnBackendAttributeName_t name) {
  return listOf<int64_t>(object, name, CUDNN_TYPE_INT64);
}
Object& partOf(const Object& object, cudnnBackendAttributeName_t name, cudnnBackendDescriptorType_t type) {
  Object& part = known(valueOf<void*>(object, name, CUDNN_TYPE_BACKEND_DESCRIPTOR));
  want(part.type == type, "attribute " + std::to_string(name) + " is of another kind",
       CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE);
  return part;
}

Tensor tensorOf(const Object& object, cudnnBackendAttributeName_t name) {
  const Object& tensor = partOf(object, name, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  return {sizesOf(tensor, CUDNN_ATTR_TENSOR_DIMENSIONS), sizesOf(tensor, CUDNN_ATTR_TENSOR_STRIDES),
          valueOf<cudnnDataType_t>(tensor, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE),
          valueOf<int64_t>(tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64)};
}

// --- Graphs ----------------------------------------------------------------------------------------------------------

void convolve(const Object& op, Form& form) {
  const Object& conv =
      partOf(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  want(valueOf<float>(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT) == 1, "alpha");
  want(valueOf<float>(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT) == 0, "beta");
  form.x = tensorOf(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X);
  form.w = tensorOf(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W);
  form.y = tensorOf(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y);
  form.stride = sizesOf(conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES);
  form.padding = sizesOf(conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS);
  form.dilation = sizesOf(conv, CUDNN_ATTR_CONVOLUTION_DILATIONS);
  want(form.x.type == form.w.type, "x and w of one type", CUDNN_STATUS_NOT_SUPPORTED);
  const Sizes &x = form.x.sizes, &w = form.w.sizes, &y = form.y.sizes;
  bool fits = x.size() == form.stride.size() + 2 && w.size() == x.size() && y.size() == x.size() && y[0] == x[0] &&
              y[1] == w[0] && x[1] % w[1] == 0 && w[0] % (x[1] / w[1]) == 0;
  for (size_t i = 0; fits && i < form.stride.size(); i++) {
    const int64_t room = x[i + 2] + 2 * form.padding[i] - form.dilation[i] * (w[i + 2] - 1) - 1;
    fits = room >= 0 && y[i + 2] == room / form.stride[i] + 1;
  }
  want(fits, "sizes of a convolution", CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH);
}

// A graph's operations, each of which goes on with what the one before has made.
std::shared_ptr<const Form> formOf(const Object& graph) {
  auto form = std::make_shared<Form>();
  const auto ops = listOf<void*>(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR);
  for (size_t i = 0; i < ops.size(); i++) {
    const Object& op = known(ops[i]);
    if (i == 0) {
      want(op.type == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, "no convolution",
           CUDNN_STATUS_NOT_SUPPORTED);
      convolve(op, *form);
      continue;
    }
    want(op.type == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, "not pointwise", CUDNN_STATUS_NOT_SUPPORTED);
    want(tensorOf(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC).id == form->y.id, "no chain", CUDNN_STATUS_NOT_SUPPORTED);
    const Object& function =
        partOf(op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    const auto mode = valueOf<cudnnPointwiseMode_t>(function, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE);
    form->y = tensorOf(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
    if (mode == CUDNN_POINTWISE_RELU_FWD) {
      form->relu = true;
      continue;
    }
    const Tensor other = tensorOf(op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
    want(!form->relu && other.type == form->x.type, "other patterns", CUDNN_STATUS_NOT_SUPPORTED);
    Sizes vector(form->y.sizes.size(), 1);
    vector[1] = form->y.sizes[1];
    if (other.sizes == vector && !form->hasBias) {
      form->bias = other, form->hasBias = true;
    } else {
      want(!form->hasResidual && !form->hasBias && other.sizes == form->y.sizes, "other patterns",
           CUDNN_STATUS_NOT_SUPPORTED);
      form->residual = other, form->hasResidual = true;
    }
  }
  want(form->y.type == form->x.type, "y of the type of x", CUDNN_STATUS_NOT_SUPPORTED);
  return form;
}

bool hasEngines(const Form& form) {
  const char* const engines = std::getenv("OCTCONV_STAND_IN_CUDNN_ENGINES");
  if (engines) return std::string(engines) == "alone" && !form.hasResidual && !form.hasBias && !form.relu;
  return form.hasBias || (!form.hasResidual && !form.relu);
}

// --- Work ------------------------------------------------------------------------------------------------------------

DType typeOf(const Tensor& tensor) {
  return tensor.type == CUDNN_DATA_BFLOAT16 ? DType::bf16 : tensor.type == CUDNN_DATA_HALF ? DType::f16 : DType::f32;
}
float elementAt(const Tensor& tensor, const void* at, int64_t i) { return octconv::elementAt(at, typeOf(tensor), i); }

constexpr size_t workspaceBytes = 300;

// N C T H W, of images with T = 1.
using Five = std::array<int64_t, 5>;
Five fiveOf(const Sizes& sizes, int64_t otherwise) {
  if (sizes.size() == 5) return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  return {sizes[0], sizes[1], otherwise, sizes[2], sizes[3]};
}
struct Placed {
  const Tensor& tensor;
  void* at;
  Five sizes = fiveOf(tensor.sizes, 1), strides = fiveOf(tensor.strides, 0);
  int64_t offset(int64_t n, int64_t c, int64_t t, int64_t h, int64_t w) const {
    return n * strides[0] + c * strides[1] + t * strides[2] + h * strides[3] + w * strides[4];
  }
  float element(int64_t i) const { return elementAt(tensor, at, i); }
};

void compute(const Form& form, const std::map<int64_t, void*>& pointers, void* workspace) {
  std::memset(workspace, 0xff, workspaceBytes);
  const auto placed = [&](const Tensor& tensor) { return Placed{tensor, pointers.at(tensor.id)}; };
  const Placed x = placed(form.x), w = placed(form.w), y = placed(form.y);
  const auto three = [](const Sizes& s, int64_t otherwise) {
    return s.size() == 3 ? std::array{s[0], s[1], s[2]} : std::array{otherwise, s[0], s[1]};
  };
  const auto stride = three(form.stride, 1), padding = three(form.padding, 0), dilation = three(form.dilation, 1);
  const int64_t inputs = w.sizes[1], outputs = w.sizes[0] / (x.sizes[1] / inputs);  // of a group
  const auto product = [&](int64_t n, int64_t c, int64_t t, int64_t h, int64_t column) {
    float sum = 0;
    for (int64_t kt = 0; kt < w.sizes[2]; kt++)
      for (int64_t kh = 0; kh < w.sizes[3]; kh++)
        for (int64_t kw = 0; kw < w.sizes[4]; kw++) {
          const int64_t xt = t * stride[0] - padding[0] + kt * dilation[0],
                        xh = h * stride[1] - padding[1] + kh * dilation[1],
                        xw = column * stride[2] - padding[2] + kw * dilation[2];
          if (xt < 0 || xt >= x.sizes[2] || xh < 0 || xh >= x.sizes[3] || xw < 0 || xw >= x.sizes[4]) continue;
          const int64_t from = x.offset(n, c / outputs * inputs, xt, xh, xw), by = w.offset(c, 0, kt, kh, kw);
          for (int64_t i = 0; i < inputs; i++)
            sum += x.element(from + i * x.strides[1]) * w.element(by + i * w.strides[1]);
        }
    return sum;
  };
  for (int64_t n = 0; n < y.sizes[0]; n++)
    for (int64_t t = 0; t < y.sizes[2]; t++)
      for (int64_t h = 0; h < y.sizes[3]; h++)
        for (int64_t column = 0; column < y.sizes[4]; column++)
          for (int64_t c = 0; c < y.sizes[1]; c++) {
            float sum = product(n, c, t, h, column);
            if (form.hasResidual) {
              const Placed residual = placed(form.residual);
              sum += residual.element(residual.offset(n, c, t, h, column));
            }
            if (form.hasBias) sum += elementAt(form.bias, pointers.at(form.bias.id), c);
            if (form.relu && sum < 0) sum = 0;
            setValue(y.at, {typeOf(form.y), {}}, y.offset(n, c, t, h, column), sum);
          }
}

void finalize(Object& object) {
  switch (object.type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR: {
      const Sizes sizes = sizesOf(object, CUDNN_ATTR_TENSOR_DIMENSIONS);
      want(sizes.size() == sizesOf(object, CUDNN_ATTR_TENSOR_STRIDES).size() &&
               *std::min_element(sizes.begin(), sizes.end()) > 0,
           "sizes of a tensor");
      valueOf<cudnnDataType_t>(object, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE);
      valueOf<int64_t>(object, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64);
      valueOf<char>(object, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN);
      break;
    }
    case CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR: {
      const auto mode =
          valueOf<cudnnConvolutionMode_t>(object, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE);
      const auto type = valueOf<cudnnDataType_t>(object, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE);
      want(mode == CUDNN_CROSS_CORRELATION && type == CUDNN_DATA_FLOAT, "mode and sums of a convolution");
      const auto rank =
          static_cast<size_t>(valueOf<int64_t>(object, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64));
      for (const auto name : {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS,
                              CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_ATTR_CONVOLUTION_DILATIONS})
        want(sizesOf(object, name).size() == rank, "dimensions of a convolution");
      break;
    }
    case CUDNN_BACKEND_POINTWISE_DESCRIPTOR:
      valueOf<cudnnPointwiseMode_t>(object, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE);
      valueOf<cudnnDataType_t>(object, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE);
      break;
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR: {
      Form form;
      convolve(object, form);
      break;
    }
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
      break;  // the graph looks at it
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
      want(handles.count(valueOf<cudnnHandle_t>(object, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE)) > 0,
           "no handle");
      object.form = formOf(object);
      break;
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
      valueOf<cudnnBackendHeurMode_t>(object, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE);
      object.form = partOf(object, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR).form;
      break;
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR: {
      want(handles.count(valueOf<cudnnHandle_t>(object, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE)) > 0,
           "no handle");
      const Object& config =
          partOf(object, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
      want(config.engine != 1, "engine 1 does not work", CUDNN_STATUS_NOT_SUPPORTED);
      object.form = config.form, object.engine = config.engine;
      break;
    }
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR: {
      const auto ids = listOf<int64_t>(object, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64);
      const auto at = listOf<CUdeviceptr>(object, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR);
      want(ids.size() == at.size(), "as many pointers as tensors");
      for (const CUdeviceptr pointer : at) want(pointer && pointer % 16 == 0, "pointers to multiples of 16 bytes");
      break;
    }
    default:
      refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "a descriptor that is not finalized");
  }
  object.finalized = true;
}

}  // namespace

extern "C" {

size_t cudnnGetVersion() {
  const char* const version = std::getenv("OCTCONV_STAND_IN_CUDNN_VERSION");
  return version ? std::strtoull(version, nullptr, 10) : 90100;
}
const char* cudnnGetErrorString(cudnnStatus_t status) {
#define OCTCONV_NAME(name, code) \
  if (status == code) return #name;
  OCTCONV_STATUSES(OCTCONV_NAME)
  return "CUDNN_UNKNOWN_STATUS";
}
void cudnnGetLastErrorString(char* text, size_t bytes) {
  if (bytes == 0) return;
  text[lastError.copy(text, bytes - 1)] = 0;
}

cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  return call("cudnnCreate", true, [&] {
    *handle = reinterpret_cast<cudnnHandle_t>(new char);
    handles.emplace(*handle, nullptr);
    standIn().hold(1);
  });
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  const auto destroy = [&] {
    want(handles.erase(handle) > 0, "no handle");
    delete reinterpret_cast<char*>(handle);
    standIn().hold(-1);
  };
  return call("cudnnDestroy", true, destroy, true);
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, CUstream stream) {
  return call("cudnnSetStream", true, [&] {
    want(handles.count(handle) > 0, "no handle");
    handles[handle] = stream;
  });
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* descriptor) {
  return call("cudnnBackendCreateDescriptor", false, [&] {
    auto* const object = new Object{type, false, {}, {}};
    objects.insert(object);
    *descriptor = object;
    standIn().hold(1);
  });
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  const auto destroy = [&] {
    Object& object = known(descriptor);
    objects.erase(&object);
    delete &object;
    standIn().hold(-1);
  };
  return call("cudnnBackendDestroyDescriptor", false, destroy, true);
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void* elements) {
  return call("cudnnBackendSetAttribute", false, [&] {
    Object& object = known(descriptor);
    want(!object.finalized && count > 0 && elements, "attribute " + std::to_string(name));
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
      for (int64_t i = 0; i < count; i++)
        want(known(static_cast<void* const*>(elements)[i]).finalized, "attribute " + std::to_string(name),
             CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED);
    const auto* const first = static_cast<const char*>(elements);
    object.attributes[name] = {type, {first, first + static_cast<size_t>(count) * bytesOf(type)}};
  });
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t most, int64_t* count, void* elements) {
  return call("cudnnBackendGetAttribute", false, [&] {
    Object& object = known(descriptor);
    want(object.finalized, "attribute " + std::to_string(name), CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED);
    const auto given = [&](int64_t i, cudnnBackendDescriptorType_t kind) -> Object& {
      Object& result = known(static_cast<void**>(elements)[i]);
      want(type == CUDNN_TYPE_BACKEND_DESCRIPTOR && result.type == kind, "attribute " + std::to_string(name),
           CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE);
      return result;
    };
    const auto fill = [&](Object& result, int64_t engine) {
      result.form = object.form, result.engine = engine, result.finalized = true;
    };
    const auto number = [&](int64_t value) {
      want(type == CUDNN_TYPE_INT64 && most == 1, "attribute " + std::to_string(name),
           CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE);
      *static_cast<int64_t*>(elements) = value;
    };
    *count = 1;
    switch (name) {
      case CUDNN_ATTR_ENGINEHEUR_RESULTS:
        *count = hasEngines(*object.form) ? 3 : 0;
        if (elements)
          for (int64_t i = 0; i < *count && i < most; i++) fill(given(i, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR), i + 1);
        break;
      case CUDNN_ATTR_ENGINECFG_ENGINE:
        fill(given(0, CUDNN_BACKEND_ENGINE_DESCRIPTOR), object.engine);
        break;
      case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
        number(object.engine);
        break;
      case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
        number(object.engine == 2 ? int64_t{1} << 30 : static_cast<int64_t>(workspaceBytes));
        break;
      default:
        refuse(CUDNN_STATUS_BAD_PARAM, "attribute " + std::to_string(name) + " is not known here");
    }
  });
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  return call("cudnnBackendFinalize", true, [&] { finalize(known(descriptor)); });
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack) {
  return call("cudnnBackendExecute", true, [&] {
    const Object &made = known(plan), &given = known(pack);
    want(made.type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR && given.type == CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR &&
             made.finalized && given.finalized,
         "a plan and a pack", CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED);
    const auto ids = listOf<int64_t>(given, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64);
    const auto at = listOf<void*>(given, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR);
    std::map<int64_t, void*> pointers;
    for (size_t i = 0; i < ids.size(); i++) pointers[ids[i]] = at[i];
    const Form& form = *made.form;
    const auto has = [&](const Tensor& tensor) { return pointers.count(tensor.id) > 0; };
    want(has(form.x) && has(form.w) && has(form.y) && (!form.hasResidual || has(form.residual)) &&
             (!form.hasBias || has(form.bias)),
         "a pointer for each tensor");
    void* const workspace = valueOf<void*>(given, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR);
    want(handles.count(handle) > 0, "no handle");
    const CUresult error =
        standIn().work(handles[handle], std::getenv("OCTCONV_STAND_IN_CUDNN_UNCAPTURED") == nullptr,
                       [form = made.form, pointers, workspace] { compute(*form, pointers, workspace); });
    want(error == 0, "error " + std::to_string(error) + " of the driver", CUDNN_STATUS_EXECUTION_FAILED);
  });
}

}  // extern "C"

}  // namespace octconv::cuda
