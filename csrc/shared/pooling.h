// What pooling keeps of a column while it goes through a sequence's rows, and how two such are joined.
#pragma once

#include "shared/platform.h"

namespace bert_fast {

enum class Pooling { kMean = 0, kMax = 1, kFirst = 2 };

constexpr float kSmallestNorm = 1e-12f;  // of F.normalize: a vector of no length is divided by it

// The largest value and the first place it is at; NaN is larger than all, as PyTorch has it. place -1: nothing seen.
struct Largest {
    float value;
    int place;

    BERT_FAST_HD void take(float other, int at) {
        if (at < 0) return;
        const bool larger = other > value || (other != other && value == value);
        const bool same = other == value || (other != other && value != value);
        if (place < 0 || larger || (same && at < place)) {
            value = other;
            place = at;
        }
    }
};

// Rows begin .. end of the packed batch: those of a sequence, kept within the batch whatever cu_seqlens holds.
struct RowRange {
    int64_t begin, end;
};

BERT_FAST_HD RowRange rows_of(const int32_t* cu_seqlens, int64_t sequence, int64_t tokens) {
    int64_t begin = cu_seqlens[sequence], end = cu_seqlens[sequence + 1];
    begin = begin < 0 ? 0 : begin > tokens ? tokens : begin;
    end = end < begin ? begin : end > tokens ? tokens : end;
    return {begin, end};
}

}  // namespace bert_fast
