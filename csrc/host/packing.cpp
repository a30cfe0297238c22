#include "host/packing.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "host/checks.h"

namespace bert_fast {
namespace {

bool has_zero_byte(uint64_t bytes) { return ((bytes - 0x0101010101010101u) & ~bytes & 0x8080808080808080u) != 0; }

}  // namespace

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
        const int64_t end = position + seqlen;
        while (position < end) {
            // Masks are mostly runs: eight positions at once where all of them are hidden, or all visible.
            uint64_t bytes = 0;
            const int64_t step = std::min<int64_t>(8, end - position);
            std::memcpy(&bytes, mask + position, static_cast<size_t>(step));
            if (!has_zero_byte(bytes)) {  // never so for the last, shorter step
                for (int64_t k = 0; k < 8; ++k) indices[total + k] = position + k;
                total += 8;
            } else if (bytes != 0) {
                for (int64_t k = 0; k < step; ++k) {
                    indices[total] = position + k;  // overwritten by the next one if this is hidden: no branch
                    total += mask[position + k] != 0;
                }
            }
            position += step;
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
