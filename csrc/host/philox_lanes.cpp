#include "host/philox_lanes.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "shared/philox.h"

namespace bert_fast {
namespace {

void draw_each(PhiloxLanes& lanes, uint32_t pass, uint64_t seed) {
    for (int i = 0; i < kLanes; ++i) {
        const auto counter = [](uint64_t word) { return static_cast<uint32_t>(word); };
        const auto [w0, w1, w2, w3] =
            philox4x32_10({{counter(lanes.block[i]), pass, counter(lanes.low[i]), counter(lanes.high[i])}}, seed).words;
        lanes.first[i] = w0 | uint64_t{w1} << 32;
        lanes.last[i] = w2 | uint64_t{w3} << 32;
    }
}

#ifdef __x86_64__

namespace sse2 {
typedef uint64_t Vec __attribute__((vector_size(16)));
inline Vec product(Vec x, Vec y) { return (Vec)_mm_mul_epu32((__m128i)x, (__m128i)y); }
#include "host/philox_vectors.h"
}  // namespace sse2

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
namespace avx2 {
typedef uint64_t Vec __attribute__((vector_size(32)));
inline Vec product(Vec x, Vec y) { return (Vec)_mm256_mul_epu32((__m256i)x, (__m256i)y); }
#include "host/philox_vectors.h"
}  // namespace avx2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f")
#endif
namespace avx512 {
typedef uint64_t Vec __attribute__((vector_size(64)));
inline Vec product(Vec x, Vec y) { return (Vec)_mm512_maskz_mul_epu32(0xFF, (__m512i)x, (__m512i)y); }
#include "host/philox_vectors.h"
}  // namespace avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

std::vector<PhiloxVariant> available() {
    std::vector<PhiloxVariant> found;
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) found.push_back({"avx512", avx512::draw});
    if (__builtin_cpu_supports("avx2")) found.push_back({"avx2", avx2::draw});
    found.push_back({"sse2", sse2::draw});
#endif
    found.push_back({"plain", draw_each});
    return found;
}

}  // namespace

const std::vector<PhiloxVariant>& philox_variants() {
    static const std::vector<PhiloxVariant> variants = available();
    return variants;
}

void PhiloxLanes::draw(uint32_t pass, uint64_t seed) {
    static const auto fastest = philox_variants().front().draw;
    fastest(*this, pass, seed);
}

}  // namespace bert_fast
