#include "host/packing.h"

#include <algorithm>
#include <numeric>

#include "host/checks.h"

namespace bert_fast {

std::pair<int64_t, int64_t> unpad(const uint8_t* mask, int64_t batch, int64_t seqlen, int64_t* indices,
                                  int32_t* cu_seqlens) {
    const int64_t positions = checked_area(batch, seqlen);
    require_pointer("mask", mask, positions > 0);
    require_pointer("indices", indices, positions > 0);
    require_pointer("cu_seqlens", cu_seqlens, true);
    int64_t total = 0, longest = 0, position = 0;
    cu_seqlens[0] = 0;
    for (int64_t row = 0; row < batch; ++row) {
        const int64_t start = total;
        for (const int64_t end = position + seqlen; position < end; ++position) {
            indices[total] = position;  // overwritten by the next position if this one is hidden: no branch
            total += mask[position] != 0;
        }
        if (total > INT32_MAX) refuse("more than 2^31 - 1 tokens are visible: cu_seqlens is int32");
        cu_seqlens[row + 1] = static_cast<int32_t>(total);
        longest = std::max(longest, total - start);
    }
    return {total, longest};
}

int64_t token_budget_batches(const int64_t* lengths, int64_t n, int64_t max_tokens, int64_t max_sequences,
                             int64_t* order, int64_t* offsets) {
    require_at_least("n", n, 0);
    require_at_least("max_tokens", max_tokens, 1);
    require_at_least("max_sequences", max_sequences, 0);
    require_pointer("lengths", lengths, n > 0);
    require_pointer("order", order, n > 0);
    require_pointer("offsets", offsets, true);
    for (int64_t i = 0; i < n; ++i) {
        if (lengths[i] < 0) {
            refuse("lengths[" + std::to_string(i) + "] must be at least 0, got " + std::to_string(lengths[i]));
        }
    }
    std::iota(order, order + n, int64_t{0});
    std::stable_sort(order, order + n, [lengths](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });

    const int64_t most = max_sequences == 0 ? n : max_sequences;
    int64_t batches = 0, room = 0;
    offsets[0] = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t length = lengths[order[i]];
        const bool fits = length <= room && i - offsets[batches] < most;
        if (i > 0 && !fits) offsets[++batches] = i;
        if (i == 0 || !fits) room = max_tokens;
        room -= length;  // below 0 after an oversized sequence: not even an empty one joins it
    }
    if (n > 0) offsets[++batches] = n;
    return batches;
}

}  // namespace bert_fast
