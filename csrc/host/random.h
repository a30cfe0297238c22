// Draws that depend on nothing but the seed, the pass over the data and which sequence or document they are for: not on
// workers, batches, threads or platform. bert_fast/training/draws.py makes the same ones in NumPy.
#pragma once

#include <cmath>
#include <cstdint>

#include "shared/philox.h"

namespace bert_fast {

// What a draw decides: no two purposes share words, nor do they with dropout, whose counters end in 0.
enum class Purpose : uint32_t { kSelect = 1, kShuffle = 2, kReplace = 3, kPair = 4 };

constexpr int64_t kMaxIndex = (int64_t{1} << 56) - 1;  // of a sequence or a document: the purpose has the top byte

struct Randomness {
    uint64_t seed;
    uint32_t pass;

    PhiloxWords words(Purpose purpose, int64_t index, uint32_t block) const {
        const uint32_t high = static_cast<uint32_t>(index >> 32) | static_cast<uint32_t>(purpose) << 24;
        return philox4x32_10({{block, pass, static_cast<uint32_t>(index), high}}, seed);
    }
};

// A word is below it with probability p.
inline uint64_t word_threshold(double p) { return static_cast<uint64_t>(std::nearbyint(p * 4294967296.0)); }

// high, low as one number of 64 bits, scaled to 0 .. n - 1: for n < 2^32 no value is more than n / 2^64 too likely.
inline int64_t scaled_below(uint32_t high, uint32_t low, uint64_t n) {
    return static_cast<int64_t>((high * n + (low * n >> 32)) >> 32);
}

// The draws of one sequence or document in turn, two words each.
class Draws {
public:
    Draws(const Randomness& randomness, Purpose purpose, int64_t index)
        : randomness_(randomness), purpose_(purpose), index_(index) {}

    int64_t below(int64_t n) {
        const auto [high, low] = next();
        return scaled_below(high, low, static_cast<uint64_t>(n));
    }

    bool chance(uint64_t threshold) { return next().high < threshold; }

private:
    struct Pair {
        uint32_t high, low;
    };

    Pair next() {
        if (count_ % 2 == 0) words_ = randomness_.words(purpose_, index_, count_ / 2);
        const uint32_t* const words = words_.words + count_++ % 2 * 2;
        return {words[0], words[1]};
    }

    Randomness randomness_;
    Purpose purpose_;
    int64_t index_;
    uint32_t count_ = 0;
    PhiloxWords words_{};
};

}  // namespace bert_fast
