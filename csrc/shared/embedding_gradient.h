// The backward of one row of embedding + LayerNorm. The sum of the three table rows is gathered again rather than kept:
// keeping it costs the forward a write of [T, H], and reading it back is no cheaper than the gather.
#pragma once

#include "shared/embedding_row.h"

namespace bert_fast {

// What is added up over all tokens, column by column: the gradients of gamma and beta, and of the first two type rows.
enum ColumnPlane { kGammaPlane = 0, kBetaPlane = 1, kTypePlane = 2, kColumnPlanes = 4 };

// Of one row: g is the gradient of the normalised values, dot the sum of its products with them.
struct NormSums {
    float g, dot;
};

template <int VEC>
BERT_FAST_HD void add_floats(float* target, const float (&x)[VEC]) {
#if !defined(__CUDA_ARCH__)
    for (int k = 0; k < VEC; ++k) target[k] += x[k];
#else
#if __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010
    if constexpr (VEC % 4 == 0) {
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; k += 4) {
            atomicAdd(reinterpret_cast<float4*>(target + k), make_float4(x[k], x[k + 1], x[k + 2], x[k + 3]));
        }
    } else
#endif
    {
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) atomicAdd(target + k, x[k]);
    }
#endif
}

BERT_FAST_HD float* table_row(float* table, int64_t row, int64_t hidden) {
    return table == nullptr ? nullptr : table + row * hidden;
}

// The gradient of a token's sum of rows: stored as a row of its own, or else added to the rows of float32 tables, in
// any order of the tokens.
template <typename T>
struct SumGradient {
    T* stored;  // or null
    float* added[3];  // each may be null

    template <int VEC>
    BERT_FAST_HD void put(int at, const float (&d)[VEC]) const {
        if (stored != nullptr) return store_floats(stored + at, d);
        BERT_FAST_UNROLL
        for (int table = 0; table < 3; ++table) {
            if (added[table] != nullptr) add_floats(added[table] + at, d);
        }
    }
};

template <typename T>
struct NormGradient {
    const T* gamma;
    const T* dy;
    SumGradient<T> target;
    DropoutMask dropout;
    int64_t first;  // the row's first element in dropout's mask
    float mean;
    float rstd;
    int type;  // the row of the type table, or -1 if its gradient is not taken here

    // The normalised values and the gradient of LayerNorm's result.
    template <int VEC>
    BERT_FAST_HD void read_at(const RowSource<T>& source, int at, float (&normal)[VEC], float (&grad)[VEC]) const {
        source.sum_at(at, normal);
        load_floats(dy + at, grad);
        dropout.apply(grad, first + at);
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) normal[k] = (normal[k] - mean) * rstd;
    }

    template <int VEC>
    BERT_FAST_HD void add_to(NormSums* sums, int at, const float (&normal)[VEC], const float (&grad)[VEC]) const {
        float scale[VEC];
        load_floats(gamma + at, scale);
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) {
            sums->g += grad[k] * scale[k];
            sums->dot += grad[k] * scale[k] * normal[k];
        }
    }

    // `means`: the sums over the row, divided by its width.
    template <int VEC, typename Columns>
    BERT_FAST_HD void write_at(NormSums means, int step, int at, const float (&normal)[VEC], const float (&grad)[VEC],
                               Columns* columns) const {
        float scale[VEC], product[VEC], d[VEC];
        load_floats(gamma + at, scale);
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) {
            product[k] = grad[k] * normal[k];
            d[k] = rstd * (grad[k] * scale[k] - means.g - normal[k] * means.dot);
        }
        columns->add(kGammaPlane, step, at, product);
        columns->add(kBetaPlane, step, at, grad);
        if (type == 0) columns->add(kTypePlane, step, at, d);
        if (type == 1) columns->add(kTypePlane + 1, step, at, d);
        target.put(at, d);
    }
};

// A row that fits in registers.
template <typename T, int VEC, int STEPS>
struct CachedGradientRow {
    float normal[STEPS][VEC], grad[STEPS][VEC];

    BERT_FAST_HD NormSums read(const RowSource<T>& source, const NormGradient<T>& row) {
        NormSums sums{0, 0};
        BERT_FAST_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            const int at = source.template column<VEC>(step);
            if (at >= source.hidden) continue;
            row.read_at(source, at, normal[step], grad[step]);
            row.add_to(&sums, at, normal[step], grad[step]);
        }
        return sums;
    }

    template <typename Columns>
    BERT_FAST_HD void write(const RowSource<T>& source, const NormGradient<T>& row, NormSums means, Columns* columns) {
        BERT_FAST_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            const int at = source.template column<VEC>(step);
            if (at < source.hidden) row.write_at(means, step, at, normal[step], grad[step], columns);
        }
    }
};

// A row of any width: everything is read again for the second pass.
template <typename T>
struct StreamedGradientRow {
    template <typename Visit>
    BERT_FAST_HD void each(const RowSource<T>& source, const NormGradient<T>& row, Visit visit) {
        for (int at = source.lane; at < source.hidden; at += source.lanes) {
            float normal[1], grad[1];
            row.read_at(source, at, normal, grad);
            visit(at, normal, grad);
        }
    }

    BERT_FAST_HD NormSums read(const RowSource<T>& source, const NormGradient<T>& row) {
        NormSums sums{0, 0};
        each(source, row, [&](int at, float(&normal)[1], float(&grad)[1]) { row.add_to(&sums, at, normal, grad); });
        return sums;
    }

    template <typename Columns>
    BERT_FAST_HD void write(const RowSource<T>& source, const NormGradient<T>& row, NormSums means, Columns* columns) {
        each(source, row, [&](int at, float(&normal)[1], float(&grad)[1]) {
            row.write_at(means, 0, at, normal, grad, columns);
        });
    }
};

// A lane's columns of its block's row in each plane of the partial sums: kept in registers until the end.
template <int VEC, int STEPS>
struct RegisterColumns {
    float sums[kColumnPlanes][STEPS][VEC];

    BERT_FAST_HD void begin(float*, int64_t, int, int, int) {
        BERT_FAST_UNROLL
        for (int plane = 0; plane < kColumnPlanes; ++plane) {
            BERT_FAST_UNROLL
            for (int step = 0; step < STEPS; ++step) {
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) sums[plane][step][k] = 0;
            }
        }
    }

    BERT_FAST_HD void add(int plane, int step, int, const float (&x)[VEC]) {
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) sums[plane][step][k] += x[k];
    }

    BERT_FAST_HD void end(float* partials, int64_t plane_stride, int hidden, int lane, int lanes) const {
        BERT_FAST_UNROLL
        for (int plane = 0; plane < kColumnPlanes; ++plane) {
            BERT_FAST_UNROLL
            for (int step = 0; step < STEPS; ++step) {
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) {
                    const int at = (step * lanes + lane) * VEC + k;
                    if (at < hidden) partials[plane * plane_stride + at] = sums[plane][step][k];
                }
            }
        }
    }
};

// The same for rows of any width: added up where they lie.
struct MemoryColumns {
    float* partials;
    int64_t plane_stride;

    BERT_FAST_HD void begin(float* where, int64_t stride, int hidden, int lane, int lanes) {
        partials = where;
        plane_stride = stride;
        for (int plane = 0; plane < kColumnPlanes; ++plane) {
            for (int at = lane; at < hidden; at += lanes) partials[plane * plane_stride + at] = 0;
        }
    }

    BERT_FAST_HD void add(int plane, int, int at, const float (&x)[1]) { partials[plane * plane_stride + at] += x[0]; }

    BERT_FAST_HD void end(float*, int64_t, int, int, int) const {}
};

// Elements of a row that a thread of the backward keeps: two of each, and four column sums of each.
constexpr int kNarrowGradientElements = 8;
constexpr int kWideGradientElements = 16;

}  // namespace bert_fast
