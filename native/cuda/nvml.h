// What a GPU tells of its state through NVML, libnvidia-ml.so.1, found at run time. OCTCONV_NVML names another library.
#pragma once
#include <map>
#include <string>

namespace octconv::cuda {

// `smMHz`, `memoryMHz`, `celsius`, `watts` of the GPU at this place on the bus; those that can be read.
std::map<std::string, double> readings(const std::string& bus);

}  // namespace octconv::cuda
