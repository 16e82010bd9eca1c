// The parameters of a batchNorm node (batchnorm.cc), for the devices that pack them.
#pragma once
#include "../core/node.h"

namespace octconv {

// y = x * scale + shift, per channel.
struct NormFactors {
  std::vector<double> scale, shift;
};
NormFactors normFactorsOf(const Attr& attrs, const Params& params);
std::string normFormatOf(const Attr& attrs);  // of what they depend on: Kernels::format

}  // namespace octconv
