// attention_item.h for AVX2: 16 registers of 8 floats, so 6 queries by 16 keys at a time.
#include <utility>

#include "host/attention.h"

#ifdef BERT_FAST_HOST_VECTORS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace bert_fast {
namespace {
constexpr int kWidth = 8, kRows = 6;
#include "host/attention_item.h"
}  // namespace

extern const AttentionKernel kAttentionAvx2 = {scratch_floats, attend<float>, attend<uint16_t>};

}  // namespace bert_fast

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
