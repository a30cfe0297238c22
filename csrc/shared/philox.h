// Dropout's random words: Philox4x32-10 (Salmon et al., 2011), word for word those of bert_fast/reference.py and
// kernels/common.py. Key: the seed's two words. Counter: (element / 4, low and high word; site; 0). The element takes
// word element % 4 and is dropped where that is below the threshold.
#pragma once

#include "shared/platform.h"

namespace bert_fast {

struct PhiloxWords {
    uint32_t words[4];
};

BERT_FAST_HD uint32_t high_product(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }

BERT_FAST_HD PhiloxWords philox(uint64_t seed, uint32_t site, uint64_t group) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    uint32_t c0 = static_cast<uint32_t>(group), c1 = static_cast<uint32_t>(group >> 32), c2 = site, c3 = 0;
    BERT_FAST_UNROLL
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = high_product(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
        const uint32_t high2 = high_product(c2, 0xCD9E8D57u), low2 = c2 * 0xCD9E8D57u;
        c0 = high2 ^ c1 ^ k0;
        c1 = low2;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Which elements of one tensor are dropped, once the seed is known.
struct DropoutMask {
    bool drops;
    uint64_t key;
    uint32_t site;
    uint32_t threshold;
    float scale;

    // Drops some of the adjacent elements first .. first + VEC - 1 of the whole mask and scales the others. A vector
    // begins at a multiple of 4.
    template <int VEC>
    BERT_FAST_HD void apply(float (&x)[VEC], int64_t first) const {
        static_assert(VEC == 1 || VEC % 4 == 0, "whole groups of four words, or one word");
        if (!drops) return;
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; k += 4) {
            const PhiloxWords drawn = philox(key, site, static_cast<uint64_t>(first + k) >> 2);
            if constexpr (VEC == 1) {
                // No index that is only known at run time: it would put the words in memory.
                const int lane = static_cast<int>(first & 3);
                const uint32_t low = lane == 0 ? drawn.words[0] : drawn.words[1];
                const uint32_t high = lane == 2 ? drawn.words[2] : drawn.words[3];
                x[0] = (lane < 2 ? low : high) >= threshold ? x[0] * scale : 0.0f;
            } else {
                BERT_FAST_UNROLL
                for (int j = 0; j < 4; ++j) x[k + j] = drawn.words[j] >= threshold ? x[k + j] * scale : 0.0f;
            }
        }
    }
};

// Dropout as a kernel is given it: the seed lies on the device, so that each replay of a graph can have another one.
struct Dropout {
    const int64_t* seed;  // null: nothing is dropped
    uint32_t site;
    uint32_t threshold;
    float scale;

    BERT_FAST_HD DropoutMask mask() const {
        return {seed != nullptr, seed == nullptr ? 0 : static_cast<uint64_t>(*seed), site, threshold, scale};
    }
};

}  // namespace bert_fast
