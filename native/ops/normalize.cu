// normalize on NVIDIA GPUs: a launch for each 64 channels, which are told their numbers. In double, as the reference.
#include "../cuda/items.h"

namespace octconv::cuda {
namespace {

constexpr int normalizeChannels = 64;

struct NormalizeArgs {
  int64_t x, y;  // bytes from the arena's begin, of the first of these channels
  int64_t elements, pitch;
  int channels;
  double scale, mean[normalizeChannels], std[normalizeChannels];
};

}  // namespace
}  // namespace octconv::cuda

#if OCTCONV_KERNELS
namespace octconv::cuda {

OCTCONV_KERNEL void __launch_bounds__(itemThreads) normalize(const __grid_constant__ NormalizeArgs a, char* arena) {
  const int64_t i = itemIndex();
  if (i >= a.elements) return;
  const int64_t pixel = i / a.channels, at = pixel * a.pitch + (i - pixel * a.channels);
  const int channel = static_cast<int>(i - pixel * a.channels);
  const double x = reinterpret_cast<const uint8_t*>(arena + a.x)[at];
  reinterpret_cast<float*>(arena + a.y)[at] = static_cast<float>((x * a.scale - a.mean[channel]) / a.std[channel]);
}

}  // namespace octconv::cuda

#else
namespace octconv::cuda {
namespace {

Made make(const PlacedNode& placed) {
  const Node& node = placed.node;
  const Shape& s = node.in(0);
  Made made{{}, "normalize"};
  for (int64_t first = 0; first < s.c; first += normalizeChannels) {
    const int64_t channels = std::min<int64_t>(normalizeChannels, s.c - first);
    NormalizeArgs args{placed.inputs[0] + first,
                       placed.outputs[0] + first * static_cast<int64_t>(sizeof(float)),
                       product(s.pixels(), channels),
                       s.c,
                       static_cast<int>(channels),
                       node.attrs["scale"].number(),
                       {},
                       {}};
    for (int64_t c = 0; c < channels; c++) {
      args.mean[c] = node.attrs["mean"].list()[first + c].number();
      args.std[c] = node.attrs["std"].list()[first + c].number();
    }
    made.launches.push_back(launchItems("normalize", args.elements, args));
  }
  return made;
}

const Registered<Kernels> kernels{"normalize", {make, {DType::u8}}};

}  // namespace
}  // namespace octconv::cuda
#endif
