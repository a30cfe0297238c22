// attention_item.h for AVX-512 with AVX512_BF16, which multiplies pairs of bfloat16: attention_avx512.cpp has the floats.
#include <immintrin.h>

#include <utility>

#include "host/attention.h"

#ifdef BERT_FAST_HOST_BF16_PAIRS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,prefer-vector-width=512")
#endif

#define BERT_FAST_AVX512
#define BERT_FAST_BF16_PAIRS

namespace bert_fast {
namespace {
constexpr int kWidth = 16, kRows = 12;
#include "host/attention_item.h"
}  // namespace

extern const AttentionKernel kAttentionAvx512Bf16 = {scratch_floats, attend<float>, attend<uint16_t>};

}  // namespace bert_fast

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
