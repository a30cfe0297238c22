// Rows between int8 products, for AVX-512: each step is a loop over a row that stays in the first-level cache.
#include <immintrin.h>

#include <utility>

#include "host/quantized_rows.h"

#ifdef BERT_FAST_HOST_VECTORS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")
#endif

#define BERT_FAST_AVX512

namespace bert_fast {
namespace {

constexpr int kWidth = 16;
#include "host/float_vectors.h"

constexpr float kLog2E = 1.4426950408889634f;

// Which of a vector's elements at column i are the row's.
inline __mmask16 within(int64_t i, int64_t width) {
    return width - i >= kWidth ? 0xffff : static_cast<__mmask16>((1u << (width - i)) - 1);
}

inline Vec load_some(const float* p, __mmask16 mask) { return (Vec)_mm512_maskz_loadu_ps(mask, p); }

inline Vec load_some(const uint16_t* p, __mmask16 mask) {
    return widened((ShortVec)_mm256_maskz_loadu_epi16(mask, p));
}

inline void store_some(float* p, Vec x, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, (__m512)x); }

inline void store_some(uint16_t* p, Vec x, __mmask16 mask) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)narrowed(x));
}

// x * Phi(x). The normal distribution's tail by Abramowitz and Stegun 7.1.26: within 1e-7, far below a step of int8.
struct Gelu {
    static Vec of(Vec x) {
        const Vec size = (x < 0.0f ? -x : x) * 0.70710678f;
        const Vec t = 1.0f / (1.0f + 0.3275911f * size);
        Vec y = t * 1.061405429f - 1.453152027f;
        y = t * y + 1.421413741f;
        y = t * y - 0.284496736f;
        y = t * y + 0.254829592f;
        const Vec tail = 0.5f * t * y * exp2_of(size * size * -kLog2E);
        return x * (x < 0.0f ? tail : 1.0f - tail);
    }
};

// x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is 0.5 x (1 + tanh(u)).
struct GeluTanh {
    static Vec of(Vec x) {
        const Vec u2 = x * (1.0f + 0.044715f * x * x) * (2 * 0.79788456f * kLog2E);
        const Vec e = exp2_of(u2 < 0.0f ? u2 : -u2);
        return x * (u2 < 0.0f ? e : Vec{} + 1.0f) / (1.0f + e);
    }
};

struct Unchanged {
    static Vec of(Vec x) { return x; }
};

template <typename Activation, typename T>
void restore(const QuantizedRows& call, int64_t t, float* row) {
    const T* x = static_cast<const T*>(call.x) + t * call.width;
    const float* residual = call.residual == nullptr ? nullptr : call.residual + t * call.width;
    const bool product = call.column_sums != nullptr;
    const float scale = product ? call.scale[t] : 1, least = product ? call.least[t] : 0;
    for (int64_t i = 0; i < call.width; i += kWidth) {
        const __mmask16 mask = within(i, call.width);
        Vec v = load_some(x + i, mask);
        if (product) v = v * scale + (load_some(call.column_sums + i, mask) * least + load_some(call.bias + i, mask));
        if (residual != nullptr) v += load_some(residual + i, mask);
        store(row + i, Activation::of(v));
    }
}

template <typename T>
void restore(const QuantizedRows& call, int64_t t, float* row) {
    switch (call.activation) {
        case RowActivation::kGelu: return restore<Gelu, T>(call, t, row);
        case RowActivation::kGeluTanh: return restore<GeluTanh, T>(call, t, row);
        case RowActivation::kNone: return restore<Unchanged, T>(call, t, row);
    }
}

void normalise(const QuantizedRows& call, float* row) {
    Vec sums = {};
    for (int64_t i = 0; i < call.width; i += kWidth) sums += load_some(row + i, within(i, call.width));
    const float mean = sum_of(sums) / call.width;
    sums = Vec{};
    for (int64_t i = 0; i < call.width; i += kWidth) {
        const __mmask16 mask = within(i, call.width);
        const Vec centred = (Vec)_mm512_maskz_sub_ps(mask, (__m512)load(row + i), _mm512_set1_ps(mean));
        sums += centred * centred;
    }
    const float rstd = 1 / __builtin_sqrtf(sum_of(sums) / call.width + call.eps);
    for (int64_t i = 0; i < call.width; i += kWidth) {
        const __mmask16 mask = within(i, call.width);
        const Vec v = (load(row + i) - mean) * rstd;
        store(row + i, v * load_some(call.norm_weight + i, mask) + load_some(call.norm_bias + i, mask));
    }
}

template <typename T>
void write(T* out, const float* row, int64_t width) {
    for (int64_t i = 0; i < width; i += kWidth) store_some(out + i, load(row + i), within(i, width));
}

void quantize(const QuantizedRows& call, int64_t t, const float* row) {
    const float inf = __builtin_inff();
    Vec low = Vec{} + inf, high = Vec{} - inf, broken = {};
    for (int64_t i = 0; i < call.width; i += kWidth) {
        const __mmask16 mask = within(i, call.width);
        const Vec x = load_some(row + i, mask);
        low = (Vec)_mm512_mask_min_ps((__m512)low, mask, (__m512)low, (__m512)x);
        high = (Vec)_mm512_mask_max_ps((__m512)high, mask, (__m512)high, (__m512)x);
        broken += x * 0.0f;  // NaN of a NaN or an infinity, which the comparisons may pass over
    }
    const float least = -largest(-low), most = largest(high), exact = (most - least) * (1.0f / 255);
    const float step = exact < 1.17549435e-38f ? 0 : exact;  // subnormal: its inverse is none
    call.quantized_scale[t] = step;
    call.quantized_least[t] = least + sum_of(broken);
    const float inverse = step > 0 ? 1 / step : 0;
    uint8_t* out = call.quantized + t * call.width;
    for (int64_t i = 0; i < call.width; i += kWidth) {
        // Rounded to even; what rounding has left above 255 or below 0 is held there.
        const __m512i whole = _mm512_cvtps_epi32((__m512)((load(row + i) - least) * inverse));
        const __m512i bounded = _mm512_max_epi32(whole, _mm512_setzero_si512());
        _mm512_mask_cvtusepi32_storeu_epi8(out + i, within(i, call.width), bounded);
    }
}

}  // namespace

void quantized_rows_avx512(const QuantizedRows& call, int64_t first, int64_t last, float* row) {
    for (int64_t t = first; t < last; ++t) {
        if (call.x_dtype == HostDType::kFloat32) {
            restore<float>(call, t, row);
        } else {
            restore<uint16_t>(call, t, row);
        }
        if (call.norm_weight != nullptr) normalise(call, row);
        if (call.out != nullptr && call.out_dtype == HostDType::kFloat32) {
            write(static_cast<float*>(call.out) + t * call.width, row, call.width);
        } else if (call.out != nullptr) {
            write(static_cast<uint16_t*>(call.out) + t * call.width, row, call.width);
        }
        if (call.quantized != nullptr) quantize(call, t, row);
    }
}

}  // namespace bert_fast

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
