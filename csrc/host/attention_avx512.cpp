// attention_item.h for AVX-512: 32 registers of 16 floats, so 12 queries by 32 keys at a time.
#include <immintrin.h>

#include <utility>

#include "host/attention.h"

#ifdef BERT_FAST_HOST_VECTORS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")
#endif

#define BERT_FAST_AVX512

namespace bert_fast {
namespace {
constexpr int kWidth = 16, kRows = 12;
#include "host/attention_item.h"
}  // namespace

extern const AttentionKernel kAttentionAvx512 = {scratch_floats, attend<float>, attend<uint16_t>};

}  // namespace bert_fast

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
