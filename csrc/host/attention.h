#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "host/dtype.h"
#include "host/parallel.h"
#include "host/vector_builds.h"

namespace bert_fast {

// Bytes of q, k, v or out [T, N, D]: the first element, and the steps from row to row and from head to head. The
// elements of one head of one row are adjacent.
struct RowsOfHeads {
    char* data;
    int64_t row, head;
};

// What is added to the scores, [B or 1, N or 1, S, S], or null: the steps, in elements, from sequence to sequence (0
// where all have the same), from head to head and from query to query. One query's elements are adjacent; -inf hides.
struct ScoreBias {
    const float* data;
    int64_t sequence, head, query;
};

// Softmax(scale * q k^T + bias) v within each sequence. cu_seqlens int32 [B + 1]; key_mask bytes [T], 0: no query sees
// that key, or null; window: how far a key may lie from a query that sees it, or -1. A query that sees no key gives 0.
// Any scores are kept in float32, whatever the dtype.
struct AttentionCall {
    RowsOfHeads q, k, v, out;
    const int32_t* cu_seqlens;
    int64_t batch, heads, head_dim;
    const uint8_t* key_mask;
    ScoreBias bias;
    int64_t window;
    float scale;
    HostDType dtype;
};

// The vector instructions that attention will use here, "avx512bf16", "avx512" or "avx2"; "" where it cannot run.
std::string attention_instructions();

// `instructions`: "" for the best there are. A result depends neither on threads nor on the other sequences.
void attention(const AttentionCall& call, int threads, ParallelFunction parallel, const std::string& instructions);

// One head of one sequence: the queries from `first` up to `last`, and `length` keys from the sequence's `first_key` on.
// q and out point to its row 0; k, v, visible and the rows of bias, `bias_row` elements apart, begin with the first key.
struct AttentionItem {
    RowsOfHeads q, k, v, out;
    const uint8_t* visible;
    const float* bias;
    int64_t bias_row, first_key, length, first, last, head_dim, window;
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
