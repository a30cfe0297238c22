// One row of cross-entropy, shared among `lanes` threads. The row is cut at 16-byte boundaries of memory, wherever it
// starts: whole vectors in the middle, and before and after them a few single elements, one for each of the first
// lanes. A Batch is what one thread holds of the middle at a time: all its share, or the part in work.
#pragma once

#include <cmath>

#include "shared/embedding_row.h"

#ifdef __CUDA_ARCH__
#define BERT_FAST_UNROLL_BY_4 _Pragma("unroll 4")
#else
#define BERT_FAST_UNROLL_BY_4
#endif

namespace bert_fast {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr int kBadLabel = 4;  // in the sticky flag, beside BadId

BERT_FAST_HD float exponential(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * kLog2E));
    return y;
#else
    return std::exp2(x * kLog2E);
#endif
}

// Of the elements seen so far: the largest, the sum of exp(x - largest), and the plain sum, which smoothing needs.
struct RowSums {
    float max = -INFINITY;
    float sum = 0;
    float total = 0;

    // What exponents are taken relative to: -inf - -inf would be NaN where there is nothing but -inf yet.
    BERT_FAST_HD float base() const { return max == -INFINITY ? 0.0f : max; }

    BERT_FAST_HD void merge(const RowSums& other) {
        const float mine = max;
        max = fmaxf(max, other.max);
        sum = sum * exponential(mine - base()) + other.sum * exponential(other.max - base());
        total += other.total;
    }

    BERT_FAST_HD void add(float x) {
        RowSums one;
        one.max = x;
        one.sum = exponential(x - one.base());
        one.total = x;
        merge(one);
    }
};

// What is kept of a row between its passes: apart, the two lose nothing where logits are large.
struct RowStatistics {
    float base;  // the largest element
    float sum;   // of exp(x - base)

    BERT_FAST_HD float log_sum_exp() const { return base + logf(sum); }
};

// Loss and gradient of a row as functions of its statistics.
struct RowRule {
    float smoothing;  // PyTorch's label_smoothing
    float z_loss;     // adds z_loss * lse^2
    float classes;

    BERT_FAST_HD float loss(const RowStatistics& row, float at_label, float total) const {
        float loss = logf(row.sum) + (row.base - at_label);
        if (smoothing > 0) {
            loss = logf(row.sum) + (1 - smoothing) * (row.base - at_label) + smoothing * (row.base - total / classes);
        }
        if (z_loss != 0) loss += z_loss * row.log_sum_exp() * row.log_sum_exp();
        return loss;
    }

    // d loss / d x, times `scale`, is of_exponential * exp(x - base) - everywhere, and less at_label at the label.
    BERT_FAST_HD float of_exponential(const RowStatistics& row, float scale) const {
        const float extra = z_loss != 0 ? 2 * z_loss * row.log_sum_exp() : 0.0f;
        return scale * (1 + extra) / row.sum;
    }
    BERT_FAST_HD float everywhere(float scale) const { return scale * (smoothing / classes); }
    BERT_FAST_HD float at_label(float scale) const { return scale * (1 - smoothing); }
};

// The gradient's terms of one row, as every element needs them.
struct RowGradient {
    float base;
    float of_exponential;
    float everywhere;
    float at_label;
    int label;

    BERT_FAST_HD float at(float x) const { return of_exponential * exponential(x - base) - everywhere; }
    BERT_FAST_HD float at(float x, int column) const { return at(x) - (column == label ? at_label : 0.0f); }
};

// Where a row of `classes` elements at `address` is cut: `head` and `tail` single elements, `vectors` between them.
struct RowCut {
    int head;
    int vectors;
    int tail;
};

template <typename T, int VEC>
BERT_FAST_HD RowCut cut_row(uintptr_t address, int classes) {
    if (VEC == 1) return {0, classes, 0};
    const int past = static_cast<int>(address % (VEC * sizeof(T)) / sizeof(T));
    int head = past == 0 ? 0 : VEC - past;
    if (head > classes) head = classes;
    const int vectors = (classes - head) / VEC;
    return {head, vectors, classes - head - vectors * VEC};
}

// As load_pack, but not through the read-only path: the gradient may be written to where the logits are.
template <typename T, int VEC>
BERT_FAST_HD Pack<T, VEC> read_pack(const T* source) {
    Pack<T, VEC> pack;
#ifdef __CUDA_ARCH__
    if constexpr (sizeof pack == 16) {
        const uint4 raw = *reinterpret_cast<const uint4*>(source);
        std::memcpy(&pack, &raw, sizeof pack);
    } else
#endif
    {
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) pack.values[k] = source[k];
    }
    return pack;
}

// The single element of a lane: its column, or -1.
BERT_FAST_HD int edge_column(const RowCut& cut, int vector_size, int lane) {
    if (lane < cut.head) return lane;
    return lane < cut.head + cut.tail ? lane + cut.vectors * vector_size : -1;
}

// STEPS vectors of a lane: numbers first + lane, first + lane + lanes, ... of the row's middle, which starts at `head`.
template <typename T, int VEC, int STEPS>
struct Batch {
    static constexpr int kVec = VEC;
    static constexpr int kSteps = STEPS;
    Pack<T, VEC> packs[STEPS];

    BERT_FAST_HD void read(const T* row, const RowCut& cut, int first, int lane, int lanes) {
        BERT_FAST_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            const int vector = first + step * lanes + lane;
            if (vector < cut.vectors) packs[step] = read_pack<T, VEC>(row + cut.head + vector * VEC);
        }
    }

    // Makes the compiler widen the elements anew: to keep 16-bit elements as floats it would spill registers.
    BERT_FAST_HD void forget_widened() {
#ifdef __CUDA_ARCH__
        constexpr int kWords = (sizeof(packs) + 3) / 4;
        uint32_t words[kWords] = {};
        std::memcpy(words, packs, sizeof packs);
        BERT_FAST_UNROLL
        for (int i = 0; i < kWords; ++i) asm volatile("" : "+r"(words[i]));
        std::memcpy(packs, words, sizeof packs);
#endif
    }

    BERT_FAST_HD void add_to(RowSums* sums, const RowCut& cut, int first, int lane, int lanes, bool with_total) {
        RowSums found;
        BERT_FAST_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            if (first + step * lanes + lane < cut.vectors) {
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) found.max = fmaxf(found.max, to_float(packs[step].values[k]));
            }
        }
        forget_widened();
        const float base = found.base();
        BERT_FAST_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            if (first + step * lanes + lane < cut.vectors) {
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) {
                    const float x = to_float(packs[step].values[k]);
                    found.sum += exponential(x - base);
                    if (with_total) found.total += x;
                }
            }
        }
        sums->merge(found);
    }

    BERT_FAST_HD void write(const RowCut& cut, int first, int lane, int lanes, const RowGradient& gradient, T* out) {
        forget_widened();
        BERT_FAST_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            const int vector = first + step * lanes + lane;
            if (vector < cut.vectors) {
                const int column = cut.head + vector * VEC;
                float g[VEC];
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) g[k] = gradient.at(to_float(packs[step].values[k]));
                const unsigned offset = static_cast<unsigned>(gradient.label - column);
                if (offset < VEC) {
                    BERT_FAST_UNROLL
                    for (int k = 0; k < VEC; ++k) g[k] -= offset == static_cast<unsigned>(k) ? gradient.at_label : 0.0f;
                }
                Pack<T, VEC> y;
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) y.values[k] = from_float<T>(g[k]);
                store_pack<T, VEC>(out + column, y);
            }
        }
    }
};

// The first vector of the last batch of a row.
BERT_FAST_HD int last_batch(const RowCut& cut, int stride) {
    return cut.vectors == 0 ? 0 : (cut.vectors - 1) / stride * stride;
}

template <typename T, int VEC>
BERT_FAST_HD void write_zeros(const RowCut& cut, int lane, int lanes, T* out) {
    Pack<T, VEC> zeros;
    BERT_FAST_UNROLL
    for (int k = 0; k < VEC; ++k) zeros.values[k] = from_float<T>(0.0f);
    BERT_FAST_UNROLL_BY_4
    for (int vector = lane; vector < cut.vectors; vector += lanes) {
        store_pack<T, VEC>(out + cut.head + vector * VEC, zeros);
    }
    const int column = edge_column(cut, VEC, lane);
    if (column >= 0) out[column] = from_float<T>(0.0f);
}

// Ways of sharing a row: lanes, and the 16-byte vectors of each lane that stay in its registers.
struct Sharing {
    int lanes;
    int steps;
};
constexpr Sharing kWarpRow{32, 4}, kShortRow{128, 8}, kLongRow{512, 8}, kWideRow{1024, 8}, kStreamedRow{1024, 3};

constexpr int64_t resident_bytes(Sharing sharing) { return int64_t{16} * sharing.lanes * sharing.steps; }

}  // namespace bert_fast
