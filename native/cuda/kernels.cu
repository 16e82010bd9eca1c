// All kernels, for one octconv.fatbin.
#include "../ops/mean.cu"
#include "../ops/octconv/cuda.cu"
#include "../ops/pool.cu"
