// What comes before and after convolutions that cuDNN computes: values become of the type that is multiplied and back,
// and where cuDNN has no convolution with them, residual, bias and ReLU are added.
#include "../../cuda/items.h"
#include "cudnn.h"

namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(itemThreads) convEpilogue(const __grid_constant__ EpilogueArgs a, char* arena) {
  const int64_t i = itemIndex();
  if (i >= a.elements) return;
  float y = elementOf(arena, a.x, i);
  if (a.hasResidual) y += elementOf(arena, a.residual, i);
  if (a.bias) {
    TensorArgs bias = a.x;
    bias.at = 0;
    y += elementOf(static_cast<const char*>(a.bias), bias, i % a.x.channels);
  }
  setElement(arena, a.y, i, a.relu && y < 0 ? 0 : y);
}

}  // namespace octconv::cuda
