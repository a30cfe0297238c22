// Dropout, word for word that of bert_fast/reference.py and kernels/common.py. Philox's key is the seed; its counter is
// (element / 4, low and high word; site; 0). The element takes word element % 4 and is dropped where that is below the
// threshold.
#pragma once

#include "shared/philox.h"

namespace bert_fast {

BERT_FAST_HD PhiloxWords dropout_words(uint64_t seed, uint32_t site, uint64_t group) {
    return philox4x32_10({{static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), site, 0}}, seed);
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
            const PhiloxWords drawn = dropout_words(key, site, static_cast<uint64_t>(first + k) >> 2);
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
