// Philox of several counters at once, in the widest vectors of this machine: word for word that of shared/philox.h.
#pragma once

#include <cstdint>
#include <vector>

namespace bert_fast {

constexpr int kLanes = 16;

// A counter in each lane, its second word the same in all, and the four words that are drawn for it. Halves of 64 bits:
// the products of Philox are as wide, and nothing is shuffled on the way.
struct PhiloxLanes {
    alignas(64) uint64_t block[kLanes], low[kLanes], high[kLanes];  // words 0, 2 and 3 of the counter
    alignas(64) uint64_t first[kLanes], last[kLanes];  // words 0 and 1, words 2 and 3; the former in the low halves

    void draw(uint32_t pass, uint64_t seed);
    uint32_t word(int lane, int number) const {
        return static_cast<uint32_t>((number < 2 ? first : last)[lane] >> 32 * (number % 2));
    }
};

struct PhiloxVariant {
    const char* name;
    void (*draw)(PhiloxLanes& lanes, uint32_t pass, uint64_t seed);
};

// Those that this machine can run, the fastest first; the last one is plain C++.
const std::vector<PhiloxVariant>& philox_variants();

}  // namespace bert_fast
