// float, half and bfloat16 as storage types: everything is computed in float32.
#pragma once

#include <cstring>

#include "shared/platform.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace bert_fast {

struct Half {
    uint16_t bits;
};

struct BFloat16 {
    uint16_t bits;
};

BERT_FAST_HD uint32_t float_bits(float x) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(x);
#else
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
#endif
}

BERT_FAST_HD float float_from_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
#endif
}

BERT_FAST_HD float to_float(float x) { return x; }

BERT_FAST_HD float to_float(BFloat16 x) { return float_from_bits(static_cast<uint32_t>(x.bits) << 16); }

BERT_FAST_HD float to_float(Half x) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(x.bits));
#else
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
    const uint32_t magnitude = x.bits & 0x7fff;
    if (magnitude >= 0x7c00) return float_from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    // Moving the exponent field over and scaling by 2^112 is exact, subnormals included.
    return float_from_bits(sign | float_bits(float_from_bits(magnitude << 13) * 0x1p112f));
#endif
}

template <typename T>
BERT_FAST_HD T from_float(float x);

template <>
BERT_FAST_HD float from_float<float>(float x) {
    return x;
}

// Both conversions round to nearest, ties to even.
template <>
BERT_FAST_HD BFloat16 from_float<BFloat16>(float x) {
#ifdef __CUDA_ARCH__
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
    const uint32_t bits = float_bits(x);
    if (x != x) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}

template <>
BERT_FAST_HD Half from_float<Half>(float x) {
#ifdef __CUDA_ARCH__
    return {__half_as_ushort(__float2half_rn(x))};
#else
    const uint32_t bits = float_bits(x);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (x != x) return {0x7fff};
    if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and above round to infinity
    if (magnitude < 0x38800000) {
        // Subnormal: adding 0.5 leaves the rounded half in the low bits of the sum.
        const float shifted = float_from_bits(magnitude) + 0.5f;
        return {static_cast<uint16_t>(sign | (float_bits(shifted) - 0x3f000000))};
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return {static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13)};
#endif
}

}  // namespace bert_fast
