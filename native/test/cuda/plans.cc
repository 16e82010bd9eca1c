// What cuDNN plans for convolutions on GPUs that are not there: `cudnn-plans < LINES`, run by tools/cudnn.mjs.
// A line is `gpu JSON`, properties as cuDNN writes them, for the lines that follow, or a convolution (Convolution in
// native/cuda/cudnn.h), its residual, bias and ReLU as 0 or 1:
//   bf16 1,64,56,56 64,64,3,3 1,64,56,56 1,1 1,1 1,1 0 1 1
// For the second kind a line comes out: 1 if it is computed whole, bytes of workspace, number of the engine; or `-` and
// why there is no plan. The first line is the version of cuDNN.
#include <iostream>
#include <optional>
#include <sstream>

#include "cuda/cudnn.h"

using namespace octconv;
using namespace octconv::cuda;

static std::vector<int64_t> sizesOf(const std::string& text) {
  std::vector<int64_t> sizes;
  std::istringstream list(text);
  for (std::string each; std::getline(list, each, ',');) sizes.push_back(std::stoll(each));
  return sizes;
}

static DType typeOf(const std::string& name) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
    if (name == nameOf(dtype)) return dtype;
  fail("type '", name, "', wanted f32, f16 or bf16");
}

int main() {
  try {
    std::cout << Cudnn::get().version << '\n';
    std::optional<Descriptor> properties;
    for (std::string line; std::getline(std::cin, line);) {
      std::istringstream words(line);
      if (line.starts_with("gpu ")) {
        properties.emplace(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
        properties->set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, line.data() + 4, line.size() - 4);
        properties->finalize();
        continue;
      }
      std::string word[7];
      for (std::string& each : word) words >> each;
      Convolution c{typeOf(word[0]),
                    sizesOf(word[1]),
                    sizesOf(word[2]),
                    sizesOf(word[3]),
                    sizesOf(word[4]),
                    sizesOf(word[5]),
                    sizesOf(word[6]),
                    false,
                    false,
                    false};
      words >> c.residual >> c.bias >> c.relu;
      if (!words) fail("a line '", line, "', wanted a convolution");
      try {
        const ConvolutionPlan plan({nullptr, &properties.value()}, c);
        std::cout << plan.complete << ' ' << plan.workspaceBytes << ' ' << plan.engine << std::endl;
      } catch (const NotSupported& error) { std::cout << "- " << error.what() << std::endl; }
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
