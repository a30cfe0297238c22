// A chunk of one tensor, shared among the threads of a block: each thread takes every threads-th group of 4 elements.
#pragma once

#include "shared/floats.h"
#include "shared/optim_math.h"

namespace bert_fast {

constexpr int64_t kOptimizerChunk = 16384;
constexpr int kOptimizerVector = 4;

template <int N>
struct Width {
    static constexpr int value = N;
};

// N neighbouring elements as floats: by one access where N is 4, which `source` must then be aligned for.
template <typename T, int N>
BERT_FAST_HD void read_floats(const T* source, float (&x)[N]) {
    T values[N];
#ifdef __CUDA_ARCH__
    if constexpr (N * sizeof(T) == 16) {
        const uint4 raw = *reinterpret_cast<const uint4*>(source);
        std::memcpy(values, &raw, sizeof values);
    } else if constexpr (N * sizeof(T) == 8) {
        const uint2 raw = *reinterpret_cast<const uint2*>(source);
        std::memcpy(values, &raw, sizeof values);
    } else
#endif
        for (int k = 0; k < N; ++k) values[k] = source[k];
    BERT_FAST_UNROLL
    for (int k = 0; k < N; ++k) x[k] = to_float(values[k]);
}

template <typename T, int N>
BERT_FAST_HD void write_floats(T* target, const float (&x)[N]) {
    T values[N];
    BERT_FAST_UNROLL
    for (int k = 0; k < N; ++k) values[k] = from_float<T>(x[k]);
#ifdef __CUDA_ARCH__
    if constexpr (N * sizeof(T) == 16) {
        uint4 raw;
        std::memcpy(&raw, values, sizeof values);
        *reinterpret_cast<uint4*>(target) = raw;
    } else if constexpr (N * sizeof(T) == 8) {
        uint2 raw;
        std::memcpy(&raw, values, sizeof values);
        *reinterpret_cast<uint2*>(target) = raw;
    } else
#endif
        for (int k = 0; k < N; ++k) target[k] = values[k];
}

// Which elements of a tensor a thread takes.
struct Share {
    int64_t begin, end;
    int thread, threads;
    bool aligned;

    template <typename Visit>
    BERT_FAST_HD void each(Visit visit) const {
        const int64_t wide = aligned ? begin + (end - begin) / kOptimizerVector * kOptimizerVector : begin;
        for (int64_t at = begin + thread * kOptimizerVector; at < wide; at += threads * kOptimizerVector) {
            visit(at, Width<kOptimizerVector>{});
        }
        for (int64_t at = wide + thread; at < end; at += threads) visit(at, Width<1>{});
    }
};

BERT_FAST_HD Share make_share(int64_t numel, int64_t chunk, int thread, int threads, bool aligned) {
    const int64_t begin = chunk * kOptimizerChunk;
    const int64_t end = begin + kOptimizerChunk < numel ? begin + kOptimizerChunk : numel;
    return {begin, end, thread, threads, aligned};
}

// P: type of parameter and gradient. M: type of the first moment; the second is always float32, because a bfloat16
// that is multiplied by 0.999 rounds back to itself and would never decay.
template <typename P, typename M>
struct OptimizedTensor {
    const P* grad;
    P* param;
    float* master;  // null: the parameter itself is the weight
    M* exp_avg;
    float* exp_avg_sq;

    template <int N>
    BERT_FAST_HD void read_weight(int64_t at, float (&w)[N]) const {
        if (master != nullptr) return read_floats(master + at, w);
        read_floats(param + at, w);
    }

    template <int N>
    BERT_FAST_HD void write_weight(int64_t at, const float (&w)[N]) const {
        if (master != nullptr) write_floats(master + at, w);
        write_floats(param + at, w);
    }
};

template <typename P>
BERT_FAST_HD float sum_of_squares(const P* values, const Share& share) {
    float sum = 0;
    share.each([&](int64_t at, auto width) {
        float x[decltype(width)::value];
        read_floats(values + at, x);
        BERT_FAST_UNROLL
        for (int k = 0; k < decltype(width)::value; ++k) sum += x[k] * x[k];
    });
    return sum;
}

struct Squares {
    float weight, update;
};

// Advances the moments by `scale` times the gradient. With APPLY the weights follow at once, by `rate`; without, this
// is the first of two passes, and the squares of weights and updates are summed for the trust ratio.
template <bool APPLY, typename P, typename M>
BERT_FAST_HD Squares advance(const OptimizedTensor<P, M>& t, const AdamRule& rule, BiasCorrection bias, float scale,
                             float rate, const Share& share) {
    Squares squares{0, 0};
    share.each([&](int64_t at, auto width) {
        constexpr int N = decltype(width)::value;
        float g[N], w[N], m[N], v[N];
        read_floats(t.grad + at, g);
        t.read_weight(at, w);
        read_floats(t.exp_avg + at, m);
        read_floats(t.exp_avg_sq + at, v);
        BERT_FAST_UNROLL
        for (int k = 0; k < N; ++k) {
            advance_moments(rule, scale * g[k], w[k], m[k], v[k]);
            m[k] = to_float(from_float<M>(m[k]));  // the second pass will find it so
            const float update = update_of(rule, bias, w[k], m[k], v[k]);
            squares.weight += w[k] * w[k];
            squares.update += update * update;
            w[k] -= rate * update;
        }
        write_floats(t.exp_avg + at, m);
        write_floats(t.exp_avg_sq + at, v);
        if constexpr (APPLY) t.write_weight(at, w);
    });
    return squares;
}

// The second pass: computing the update again costs fewer bytes than writing and reading it.
template <typename P, typename M>
BERT_FAST_HD void apply(const OptimizedTensor<P, M>& t, const AdamRule& rule, BiasCorrection bias, float rate,
                        const Share& share) {
    share.each([&](int64_t at, auto width) {
        constexpr int N = decltype(width)::value;
        float w[N], m[N], v[N];
        t.read_weight(at, w);
        read_floats(t.exp_avg + at, m);
        read_floats(t.exp_avg_sq + at, v);
        BERT_FAST_UNROLL
        for (int k = 0; k < N; ++k) w[k] -= rate * update_of(rule, bias, w[k], m[k], v[k]);
        t.write_weight(at, w);
    });
}

}  // namespace bert_fast
