// One row of embedding + LayerNorm, shared among `lanes` threads: lane l owns the vectors l, l + lanes, ... of the row.
#pragma once

#include "shared/packs.h"
#include "shared/dropout.h"

namespace bert_fast {

// Which table an id fell outside of, as reported through the sticky flag.
enum BadId { kIdsFine = 0, kBadWord = 1, kBadPosition = 2, kBadType = 3 };

// An id outside its table must not read other memory: it is clamped, and the first table at fault is remembered.
BERT_FAST_HD int64_t resolve_id(int64_t id, int64_t rows, BadId table, BadId* bad) {
    if (id >= 0 && id < rows) return id;
    if (*bad == kIdsFine) *bad = table;
    return id < 0 ? 0 : rows - 1;
}

// Where a normalised row goes, and by what.
template <typename T>
struct RowTarget {
    const T* gamma;
    const T* beta;
    T* out;
    DropoutMask dropout;
    int64_t first;  // the row's first element in dropout's mask
    float mean;
    float rstd;

    template <int VEC>
    BERT_FAST_HD void write_at(int at, const float (&x)[VEC]) const {
        float scale[VEC], shift[VEC], y[VEC];
        load_floats(gamma + at, scale);
        load_floats(beta + at, shift);
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) y[k] = (x[k] - mean) * rstd * scale[k] + shift[k];
        dropout.apply(y, first + at);
        store_floats(out + at, y);
    }
};

// The three table rows that are summed, and who reads which part of them.
template <typename T>
struct RowSource {
    const T* word;
    const T* position;
    const T* type;
    int hidden;
    int lane;
    int lanes;

    template <int VEC>
    BERT_FAST_HD int column(int step) const {
        return (step * lanes + lane) * VEC;
    }

    template <int VEC>
    BERT_FAST_HD void sum_at(int at, float (&x)[VEC]) const {
        const auto w = load_pack<T, VEC>(word + at);
        const auto p = load_pack<T, VEC>(position + at);
        const auto t = load_pack<T, VEC>(type + at);
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) {
            x[k] = to_float(w.values[k]) + to_float(t.values[k]) + to_float(p.values[k]);
        }
    }
};

// A row that fits in registers: the tables are read once.
template <typename T, int VEC, int STEPS>
struct CachedRow {
    static constexpr int kVec = VEC;
    RowSource<T> source;
    float x[STEPS][VEC];

    BERT_FAST_HD float read_sum() {
        float sum = 0;
        BERT_FAST_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            const int at = source.template column<VEC>(step);
            if (at < source.hidden) {
                source.sum_at(at, x[step]);
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) sum += x[step][k];
            }
        }
        return sum;
    }

    BERT_FAST_HD float squared_deviations(float mean) const {
        float sum = 0;
        BERT_FAST_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            if (source.template column<VEC>(step) < source.hidden) {
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) sum += (x[step][k] - mean) * (x[step][k] - mean);
            }
        }
        return sum;
    }

    BERT_FAST_HD void write(const RowTarget<T>& target) const {
        BERT_FAST_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            const int at = source.template column<VEC>(step);
            if (at < source.hidden) target.write_at(at, x[step]);
        }
    }
};

// A row of any width: the tables are read again (from cache) for each of the three passes.
template <typename T, int VEC>
struct StreamedRow {
    static constexpr int kVec = VEC;
    RowSource<T> source;

    template <typename Visit>
    BERT_FAST_HD void each(Visit visit) const {
        const int stride = source.lanes * VEC;
        for (int at = source.lane * VEC; at < source.hidden; at += stride) {
            float x[VEC];
            source.sum_at(at, x);
            visit(at, x);
        }
    }

    BERT_FAST_HD float read_sum() {
        float sum = 0;
        each([&](int, const float(&x)[VEC]) {
            for (int k = 0; k < VEC; ++k) sum += x[k];
        });
        return sum;
    }

    BERT_FAST_HD float squared_deviations(float mean) const {
        float sum = 0;
        each([&](int, const float(&x)[VEC]) {
            for (int k = 0; k < VEC; ++k) sum += (x[k] - mean) * (x[k] - mean);
        });
        return sum;
    }

    BERT_FAST_HD void write(const RowTarget<T>& target) const {
        each([&](int at, const float(&x)[VEC]) { target.write_at(at, x); });
    }
};

// The rows of a token's ids, each within its table.
struct TokenRows {
    int64_t word, position, type;
    BadId bad;
};

BERT_FAST_HD TokenRows token_rows(const int64_t* input_ids, const int64_t* token_type_ids, const int64_t* position_ids,
                                  int64_t token, int64_t vocab, int64_t positions, int64_t types) {
    TokenRows rows{0, 0, 0, kIdsFine};
    rows.word = resolve_id(input_ids[token], vocab, kBadWord, &rows.bad);
    rows.position = resolve_id(position_ids[token], positions, kBadPosition, &rows.bad);
    if (token_type_ids != nullptr) rows.type = resolve_id(token_type_ids[token], types, kBadType, &rows.bad);
    return rows;
}

// Widest rows of each way of sharing: a warp per row, a block per row, and beyond that nothing is kept in registers.
constexpr int kCachedElements = 32;  // float32 registers a thread keeps of its row
constexpr int kWarpLanes = 32;
constexpr int kBlockLanes = 256;
constexpr int kWarpRowLimit = kWarpLanes * kCachedElements;
constexpr int kBlockRowLimit = kBlockLanes * kCachedElements;

}  // namespace bert_fast
