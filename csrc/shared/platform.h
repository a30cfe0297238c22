// Code under shared/ is compiled twice: by nvcc into the kernels and by the host compiler into the tests,
// which run the same index and row logic thread by thread against NumPy.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define BERT_FAST_HD __host__ __device__ __forceinline__
#else
#define BERT_FAST_HD inline
#endif

#ifdef __CUDA_ARCH__
#define BERT_FAST_UNROLL _Pragma("unroll")
#else
#define BERT_FAST_UNROLL
#endif
