// Attention of one head of one sequence, in vectors of kWidth floats and tiles of up to kRows queries. Compiled once for
// each instruction set, in a namespace of its own: attention_avx2.cpp and its like include this in the middle.
// Nothing from the standard library is called: what a header defines must not be compiled for instructions that the
// machine may not have.
//
// Both products are sums over units of 32 bits (Units<T>): a float, or a pair of bfloat16 where the machine multiplies
// pairs. Keys are transposed once into panels [units of D][2 * kWidth], the last one of kWidth where that is enough, so
// that a tile of scores is a product with queries broadcast from memory; values become rows [units of S][D]. A tile's
// scores, kRows * S floats, stay in the first-level cache up to about S = 512: softmax takes its rows as a whole, without
// rescaling.

#include "host/float_vectors.h"

constexpr int64_t kPanel = 2 * kWidth;

// What q, k, v and the weights, of dtype T in memory, are multiplied as.
template <typename T>
struct Units;

// One float each.
struct FloatUnits {
    static constexpr int64_t kElements = 1;
    static Vec multiply_add(Vec sum, float unit, Vec units) { return sum + unit * units; }
    static void store_weights(float* row, int64_t j, Vec weights) { store(row + j, weights); }
};

template <>
struct Units<float> : FloatUnits {
    static Vec load(const float* p, int64_t n) { return bits_of<Vec>(p, n); }
    static Vec load_values(const float* p, const float*, int64_t n) { return load(p, n); }
};

#ifndef BERT_FAST_BF16_PAIRS
template <>
struct Units<uint16_t> : FloatUnits {
    static Vec load(const uint16_t* p, int64_t n) { return widened(bits_of<ShortVec>(p, n)); }
    static Vec load_values(const uint16_t* p, const uint16_t*, int64_t n) { return load(p, n); }
};
#else
// Neighbours in D for the scores, neighbours in S for the values, whose weights are rounded to bfloat16.
template <>
struct Units<uint16_t> {
    static constexpr int64_t kElements = 2;
    static Vec multiply_add(Vec sum, float unit, Vec units) {
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(unit), (__m512bh)units);
    }
    static void store_weights(float* row, int64_t j, Vec weights) { store(reinterpret_cast<uint16_t*>(row) + j, weights); }
    static Vec load(const uint16_t* p, int64_t n) { return bits_of<Vec>(p, n); }
    static Vec load_values(const uint16_t* p, const uint16_t* next, int64_t n) {
        return pairs_of(bits_of<ShortVec>(p, n), next == nullptr ? ShortVec{} : bits_of<ShortVec>(next, n));
    }
};
#endif

template <typename T>
inline int64_t units_of(int64_t elements) {
    return (elements + Units<T>::kElements - 1) / Units<T>::kElements;
}

template <typename T>
T* row_of(const RowsOfHeads& x, int64_t row) {
    return reinterpret_cast<T*>(x.data + row * x.row);
}

// Rows lie far apart, where no hardware foresees the next: those of v and q are called for while k is packed.
template <typename T>
inline void call_for(const RowsOfHeads& x, int64_t row, int64_t elements) {
    for (int64_t i = 0; i < elements; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row_of<T>(x, row) + i);
}

// scores [kTile][stride] of a panel's kVecs * kWidth keys: queries [kTile][steps] times panel [steps][kVecs * kWidth].
template <typename T, int kTile, int kVecs>
void score_panel(const float* queries, const float* panel, int64_t steps, float scale, float* scores, int64_t stride) {
    Vec sums[kTile][kVecs] = {};
    for (int64_t d = 0; d < steps; ++d) {
        Vec keys[kVecs];
        for (int i = 0; i < kVecs; ++i) keys[i] = load(panel + (d * kVecs + i) * kWidth);
        for (int r = 0; r < kTile; ++r) {
            for (int i = 0; i < kVecs; ++i) sums[r][i] = Units<T>::multiply_add(sums[r][i], queries[r * steps + d], keys[i]);
        }
    }
    for (int r = 0; r < kTile; ++r) {
        for (int i = 0; i < kVecs; ++i) store(scores + r * stride + i * kWidth, sums[r][i] * scale);
    }
}

// Which of an item's keys a tile deals with, in whole vectors, and which of those one of its rows may see.
struct Keys {
    int64_t begin, end, from, to;
};

// Turns a row of scores (in log2 units), from keys.begin to keys.end, into the weights 2^(score - largest), in place and as
// they are multiplied. Scores of keys out of sight are ignored, and get no weight. Returns the weights' sum, 0 if nothing
// is seen.
template <typename T>
inline float weigh(float* scores, const Keys& keys, int64_t length, const float* bias, const uint8_t* visible) {
    const float hidden = -__builtin_inff();
    if (bias != nullptr) {
        for (int64_t j = keys.begin; j < keys.end; j += kWidth) {
            const Vec added = bits_of<Vec>(bias + j, length - j);
            store(scores + j, added == hidden ? added : load(scores + j) + added * 1.4426950408889634f);
        }
    }
    for (int64_t j = keys.begin; j < keys.from; ++j) scores[j] = hidden;
    for (int64_t j = keys.to; j < keys.end; ++j) scores[j] = hidden;
    if (visible != nullptr) {
        for (int64_t j = keys.from; j < keys.to; ++j) scores[j] = visible[j] != 0 ? scores[j] : hidden;
    }
    Vec most = load(scores + keys.begin);
    for (int64_t j = keys.begin + kWidth; j < keys.end; j += kWidth) {
        const Vec x = load(scores + j);
        most = x > most ? x : most;
    }
    const float top = largest(most);
    if (top == hidden) {  // nothing is seen, or only what is no number, which the comparisons pass over
        for (int64_t j = keys.from; j < keys.to; ++j) {
            if (scores[j] != scores[j]) return scores[j];
        }
        return 0;
    }
    Vec sums = {};
    for (int64_t j = keys.begin; j < keys.end; j += kWidth) {
        const Vec weights = exp2_of(load(scores + j) - top);
        Units<T>::store_weights(scores, j, weights);
        sums += weights;
    }
    return sum_of(sums);
}

// Columns d .. d + kVecs * kWidth of weights [kTile][stride] times values [units of S][width], those of the keys from
// `begin` up to `end`, times `inverse`, one number a row. The last columns may lie beyond the head's.
template <typename T, int kTile, int kVecs>
void mix_values(const float* weights, int64_t stride, const float* values, int64_t width, int64_t begin, int64_t end,
                const float* inverse, int64_t d, const AttentionItem& item, int64_t first) {
    Vec mixed[kTile][kVecs] = {};
    const int64_t last = units_of<T>(end);
    for (int64_t j = begin / Units<T>::kElements; j < last; ++j) {
        Vec columns[kVecs];
        for (int i = 0; i < kVecs; ++i) columns[i] = load(values + j * width + d + i * kWidth);
        for (int r = 0; r < kTile; ++r) {
            for (int i = 0; i < kVecs; ++i) {
                mixed[r][i] = Units<T>::multiply_add(mixed[r][i], weights[r * stride + j], columns[i]);
            }
        }
    }
    for (int r = 0; r < kTile; ++r) {
        for (int i = 0; i < kVecs; ++i) {
            store_some(row_of<T>(item.out, first + r) + d + i * kWidth, mixed[r][i] * inverse[r],
                       item.head_dim - d - i * kWidth);
        }
    }
}

// Where one item's working memory lies. keys and width: the length and the head dim in whole vectors.
struct Scratch {
    int64_t keys, width;
    float *panels, *values, *scores, *queries;

    Scratch(int64_t length, int64_t head_dim, float* memory)
        : keys(whole_vectors(length)), width(whole_vectors(head_dim)), panels(memory), values(panels + keys * head_dim),
          scores(values + keys * width), queries(scores + kRows * keys) {}
};

int64_t scratch_floats(int64_t length, int64_t head_dim) {
    const Scratch all(length, head_dim, nullptr);
    return all.keys * (head_dim + all.width + kRows) + kRows * head_dim;
}

// Hidden keys and values are packed as zeros: a NaN there would outlive the weight of 0.
inline bool seen(const AttentionItem& item, int64_t key) {
    return key < item.length && (item.visible == nullptr || item.visible[key] != 0);
}

template <typename T>
void pack_keys(const AttentionItem& item, const Scratch& scratch) {
    const int64_t units = units_of<T>(item.head_dim);
    for (int64_t key = 0; key < scratch.keys; key += kWidth) {
        const int64_t panel = key / kPanel * kPanel;
        const int64_t step = scratch.keys - panel < kPanel ? kWidth : kPanel;
        float* target = scratch.panels + panel * units + (key - panel);
        for (int64_t i = key; i < item.length && i < key + kWidth; ++i) {
            const int64_t query = item.first_key + i;
            call_for<T>(item.v, i, item.head_dim);
            if (item.first <= query && query < item.last) call_for<T>(item.q, query, item.head_dim);
        }
        for (int64_t d = 0; d < units; d += kWidth) {
            const int64_t element = d * Units<T>::kElements;
            Vec rows[kWidth];
            for (int i = 0; i < kWidth; ++i) {
                rows[i] = Vec{};
                if (seen(item, key + i)) {
                    rows[i] = Units<T>::load(row_of<T>(item.k, key + i) + element, item.head_dim - element);
                }
            }
            transpose(rows);
            const int64_t columns = units - d < kWidth ? units - d : kWidth;
            for (int64_t i = 0; i < columns; ++i) store(target + (d + i) * step, rows[i]);
        }
    }
}

template <typename T>
void pack_values(const AttentionItem& item, const Scratch& scratch) {
    constexpr int64_t kStep = Units<T>::kElements;
    for (int64_t key = 0; key < item.length; key += kStep) {
        const bool here = seen(item, key), next = kStep == 2 && seen(item, key + 1);
        for (int64_t d = 0; d < scratch.width; d += kWidth) {
            // A key that hides beside one that shows is left out by reading the zeros of `none`.
            static constexpr T none[kWidth] = {};
            const T* first = here ? row_of<T>(item.v, key) + d : none;
            const T* second = next ? row_of<T>(item.v, key + 1) + d : nullptr;
            store(scratch.values + key / kStep * scratch.width + d, Units<T>::load_values(first, second, item.head_dim - d));
        }
    }
}

// All keys that any query of rows first .. first + rows - 1 sees, in whole panels.
inline Keys keys_of_tile(const AttentionItem& item, int64_t keys, int64_t first, int64_t rows) {
    if (item.window < 0) return {0, keys, 0, item.length};
    const int64_t lowest = first - item.window - item.first_key;
    const int64_t highest = first + rows + item.window - item.first_key;
    const int64_t begin = lowest < 0 ? 0 : lowest / kPanel * kPanel;
    const int64_t end = (highest + kPanel - 1) / kPanel * kPanel;
    return {begin, end < keys ? end : keys, 0, 0};
}

inline Keys keys_of_row(Keys keys, const AttentionItem& item, int64_t row) {
    if (item.window < 0) return keys;
    const int64_t from = row - item.window - item.first_key, to = row + item.window + 1 - item.first_key;
    keys.from = from < 0 ? 0 : from;
    keys.to = to < item.length ? to : item.length;
    return keys;
}

template <typename T, int kTile>
void attend_tile(const AttentionItem& item, const Scratch& scratch, int64_t first) {
    const int64_t head_dim = item.head_dim, keys = scratch.keys, width = scratch.width, units = units_of<T>(head_dim);
    for (int r = 0; r < kTile; ++r) {
        for (int64_t d = 0; d < units; d += kWidth) {
            const int64_t element = d * Units<T>::kElements;
            const Vec x = Units<T>::load(row_of<T>(item.q, first + r) + element, head_dim - element);
            store_some(scratch.queries + r * units + d, x, units - d);
        }
    }
    const Keys all = keys_of_tile(item, keys, first, kTile);
    const float* panel = scratch.panels + all.begin * units;
    int64_t key = all.begin;
    for (; key + kPanel <= all.end; key += kPanel, panel += kPanel * units) {
        score_panel<T, kTile, 2>(scratch.queries, panel, units, item.scale_log2, scratch.scores + key, keys);
    }
    if (key < all.end) {
        score_panel<T, kTile, 1>(scratch.queries, panel, units, item.scale_log2, scratch.scores + key, keys);
    }
    float inverse[kTile];
    for (int r = 0; r < kTile; ++r) {
        float* row = scratch.scores + r * keys;
        const float* bias = item.bias == nullptr ? nullptr : item.bias + (first + r) * item.bias_row;
        const float sum = weigh<T>(row, keys_of_row(all, item, first + r), item.length, bias, item.visible);
        inverse[r] = 1 / sum;
        if (sum == 0) {  // nothing is seen
            for (int64_t j = all.begin / Units<T>::kElements; j < all.end; ++j) row[j] = 0;
            inverse[r] = 0;
        }
    }
    const int64_t end = all.end < item.length ? all.end : item.length;
    int64_t d = 0;
    for (; d + kPanel <= width; d += kPanel) {
        mix_values<T, kTile, 2>(scratch.scores, keys, scratch.values, width, all.begin, end, inverse, d, item, first);
    }
    if (d < width) {
        mix_values<T, kTile, 1>(scratch.scores, keys, scratch.values, width, all.begin, end, inverse, d, item, first);
    }
}

// attend_tile<T, rows> for 1 <= rows <= kTile.
template <typename T, int kTile>
void attend_rows(const AttentionItem& item, const Scratch& scratch, int64_t first, int64_t rows) {
    if (rows == kTile) {
        attend_tile<T, kTile>(item, scratch, first);
    } else if constexpr (kTile > 1) {
        attend_rows<T, kTile - 1>(item, scratch, first, rows);
    }
}

template <typename T>
void attend(const AttentionItem& item, float* memory) {
    const Scratch scratch(item.length, item.head_dim, memory);
    pack_keys<T>(item, scratch);
    pack_values<T>(item, scratch);
    // Tiles of equal height, not full ones and a rest.
    const int64_t tiles = (item.last - item.first + kRows - 1) / kRows;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = item.first + (item.last - item.first) * tile / tiles;
        const int64_t end = item.first + (item.last - item.first) * (tile + 1) / tiles;
        attend_rows<T, kRows>(item, scratch, first, end - first);
    }
}
