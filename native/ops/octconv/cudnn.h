// What the host tells the kernel that goes with octConv by cuDNN (cudnn.cu).
#pragma once
#include "../../cuda/tensor.h"

namespace octconv::cuda {

// y = relu(x + residual + bias), of any types: what cuDNN does not do itself. All are dense.
struct EpilogueArgs {
  TensorArgs x, y, residual;
  int64_t elements;
  const void* bias;  // a number per channel, of the type of x; null without
  bool hasResidual, relu;
};

}  // namespace octconv::cuda
