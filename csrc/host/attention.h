#pragma once

#include <cstdint>
#include <string>
#include <vector>

// Where attention is compiled at all: older compilers lack __builtin_convertvector, and must still build the rest.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 9)
#define BERT_FAST_HOST_ATTENTION
#endif
// And for the products of pairs of bfloat16, which compilers know since then.
#if defined(BERT_FAST_HOST_ATTENTION) && (defined(__clang__) || __GNUC__ >= 11)
#define BERT_FAST_HOST_BF16_PAIRS
#endif

namespace bert_fast {

// Bytes of q, k, v or out [T, N, D]: the first element, and the steps from row to row and from head to head. The
// elements of one head of one row are adjacent.
struct RowsOfHeads {
    char* data;
    int64_t row, head;
};

enum class HostDType { kFloat32, kBFloat16 };

// Softmax(scale * q k^T) v within each sequence. cu_seqlens int32 [B + 1]; key_mask bytes [T], 0: no query sees that
// key, or null. A query that sees no key gives 0. Any scores are kept in float32, whatever the dtype.
struct AttentionCall {
    RowsOfHeads q, k, v, out;
    const int32_t* cu_seqlens;
    int64_t batch, heads, head_dim;
    const uint8_t* key_mask;
    float scale;
    HostDType dtype;
};

// The vector instructions that attention will use here, "avx512bf16", "avx512" or "avx2"; "" where it cannot run.
std::string attention_instructions();

// GOMP_parallel of the OpenMP runtime that PyTorch has in this process: runs body(data) in `threads` of its threads.
// A pool of our own would compete for the cores with PyTorch's, whose threads spin for a while after each of its ops.
using ParallelFunction = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// `instructions`: "" for the best there are. A result depends neither on threads nor on the other sequences.
void attention(const AttentionCall& call, int threads, ParallelFunction parallel, const std::string& instructions);

// One head of one sequence, and of its queries those from `first` up to `last`. Everything points to its row 0.
struct AttentionItem {
    RowsOfHeads q, k, v, out;
    const uint8_t* visible;
    int64_t length, first, last, head_dim;
    float scale_log2;
};

// One build of attention_item.h. scratch: as many floats as `scratch_floats` says for the item, 64-byte aligned.
struct AttentionKernel {
    int64_t (*scratch_floats)(int64_t length, int64_t head_dim);
    void (*float32)(const AttentionItem& item, float* scratch);
    void (*bfloat16)(const AttentionItem& item, float* scratch);
};
extern const AttentionKernel kAttentionAvx2, kAttentionAvx512, kAttentionAvx512Bf16;

}  // namespace bert_fast
