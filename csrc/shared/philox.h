// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): four random
// words as a function of a counter and a key. The same words as kernels/common.py and bert_fast/reference.py make.
#pragma once

#include "shared/platform.h"

namespace bert_fast {

struct PhiloxWords {
    uint32_t words[4];
};

BERT_FAST_HD PhiloxWords philox4x32_10(PhiloxWords counter, uint64_t key) {
    uint32_t c0 = counter.words[0], c1 = counter.words[1], c2 = counter.words[2], c3 = counter.words[3];
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    BERT_FAST_UNROLL
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{c0} * 0xD2511F53u, product2 = uint64_t{c2} * 0xCD9E8D57u;
        c0 = static_cast<uint32_t>(product2 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(product2);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(product0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

}  // namespace bert_fast
