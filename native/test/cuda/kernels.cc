#define OCTCONV_KERNELS 1
#include "../../cuda/kernels.cu"

#include "kernel.h"

namespace octconv::cuda {
namespace {

// For tests of the stand-in itself.
void fill(float* x, float y, int n) {
  const int i = blockIndex() * 64 + threadIndex();
  if (i < n) x[i] = y;
}
void stick() {
  if (threadIndex() == 0) synchronize();
}

}  // namespace

#define OCTCONV_NAMED(name, mostThreads) \
  { #name, kernelOf(name, mostThreads) }
const std::map<std::string, Kernel>& kernels = *new std::map<std::string, Kernel>{
    OCTCONV_NAMED(attentionBf16, attentionThreads),
    OCTCONV_NAMED(attentionF16, attentionThreads),
    OCTCONV_NAMED(attentionPrepare, prepareThreads),
    OCTCONV_NAMED(attentionTf32, attentionThreads),
    OCTCONV_NAMED(batchNorm, itemThreads),
    OCTCONV_NAMED(binary, itemThreads),
    OCTCONV_NAMED(clearPads, itemThreads),
    OCTCONV_NAMED(convEpilogue, itemThreads),
    OCTCONV_NAMED(interpolate, itemThreads),
    OCTCONV_NAMED(matmul, matmulThreads),
    OCTCONV_NAMED(means, meansThreads),
    OCTCONV_NAMED(move, itemThreads),
    OCTCONV_NAMED(normalize, itemThreads),
    OCTCONV_NAMED(octConvBf16, blockThreads),
    OCTCONV_NAMED(octConvBf16Grouped, blockThreads),
    OCTCONV_NAMED(octConvBf16Large, blockThreads),
    OCTCONV_NAMED(octConvDepthwise, depthwiseThreads),
    OCTCONV_NAMED(octConvF16, blockThreads),
    OCTCONV_NAMED(octConvF16Grouped, blockThreads),
    OCTCONV_NAMED(octConvF16Large, blockThreads),
    OCTCONV_NAMED(octConvPrepare, itemThreads),
    OCTCONV_NAMED(octConvSums, blockThreads),
    OCTCONV_NAMED(octConvTf32, blockThreads),
    OCTCONV_NAMED(octConvTf32Grouped, blockThreads),
    OCTCONV_NAMED(octConvTf32Large, blockThreads),
    OCTCONV_NAMED(pad, itemThreads),
    OCTCONV_NAMED(pool, itemThreads),
    OCTCONV_NAMED(resize, itemThreads),
    OCTCONV_NAMED(resizeTable, itemThreads),
    OCTCONV_NAMED(softmax, softmaxThreads),
    OCTCONV_NAMED(unary, itemThreads),
    OCTCONV_NAMED(upsampleNearest, itemThreads),
    OCTCONV_NAMED(fill, 64),
    OCTCONV_NAMED(stick, 1024),
};

}  // namespace octconv::cuda
