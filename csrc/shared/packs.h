// Adjacent elements that move together: 16 bytes where rows allow it, one element where they do not.
#pragma once

#include <type_traits>

#include "shared/floats.h"

#ifndef __CUDACC__
#include <stdexcept>
#endif

namespace bert_fast {

#ifdef __CUDA_ARCH__
constexpr bool kOnDevice = true;
template <int BYTES>
using Word = std::conditional_t<BYTES == 16, uint4, uint2>;
#else
constexpr bool kOnDevice = false;
#endif

// The tests' stand-in for the fault that a GPU raises.
BERT_FAST_HD void require_alignment([[maybe_unused]] const void* pointer, [[maybe_unused]] size_t bytes) {
#ifndef __CUDACC__
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) throw std::runtime_error("a vector is not aligned");
#endif
}

template <typename T, int VEC>
struct alignas(sizeof(T) * VEC) Pack {
    T values[VEC];
};

template <typename T, int VEC>
BERT_FAST_HD Pack<T, VEC> load_pack(const T* source) {
    Pack<T, VEC> pack;
    if constexpr (kOnDevice && (sizeof pack == 16 || sizeof pack == 8)) {
#ifdef __CUDA_ARCH__
        const auto raw = __ldg(reinterpret_cast<const Word<sizeof pack>*>(source));
        std::memcpy(&pack, &raw, sizeof pack);
#endif
    } else {
        require_alignment(source, sizeof pack);
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) pack.values[k] = source[k];
    }
    return pack;
}

template <typename T, int VEC>
BERT_FAST_HD void store_pack(T* target, const Pack<T, VEC>& pack) {
    if constexpr (kOnDevice && (sizeof pack == 16 || sizeof pack == 8)) {
#ifdef __CUDA_ARCH__
        Word<sizeof pack> raw;
        std::memcpy(&raw, &pack, sizeof pack);
        __stwb(reinterpret_cast<Word<sizeof pack>*>(target), raw);  // an assignment may be split into words again
#endif
    } else {
        require_alignment(target, sizeof pack);
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) target[k] = pack.values[k];
    }
}

template <typename T, int VEC>
BERT_FAST_HD void load_floats(const T* source, float (&x)[VEC]) {
    const auto pack = load_pack<T, VEC>(source);
    BERT_FAST_UNROLL
    for (int k = 0; k < VEC; ++k) x[k] = to_float(pack.values[k]);
}

template <typename T, int VEC>
BERT_FAST_HD void store_floats(T* target, const float (&x)[VEC]) {
    Pack<T, VEC> pack;
    BERT_FAST_UNROLL
    for (int k = 0; k < VEC; ++k) pack.values[k] = from_float<T>(x[k]);
    store_pack<T, VEC>(target, pack);
}

// The same of float32 beside vectors of a narrower type: 16 bytes at a time.
template <int VEC>
BERT_FAST_HD void store_sums(float* target, const float (&x)[VEC]) {
    constexpr int kPart = VEC % 4 == 0 ? 4 : 1;
    BERT_FAST_UNROLL
    for (int k = 0; k < VEC; k += kPart) {
        float part[kPart];
        BERT_FAST_UNROLL
        for (int j = 0; j < kPart; ++j) part[j] = x[k + j];
        store_floats(target + k, part);
    }
}

}  // namespace bert_fast
