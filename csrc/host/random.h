// Draws that depend on nothing but the seed, the pass over the data and which sequence or document they are for: not on
// workers, batches, threads or platform. bert_fast/training/draws.py makes the same ones in NumPy.
#pragma once

#include <cmath>
#include <cstdint>

#include "host/philox_lanes.h"

namespace bert_fast {

// What a draw decides: no two purposes share words, nor do they with dropout, whose counters end in 0.
enum class Purpose : uint32_t { kSelect = 1, kShuffle = 2, kReplace = 3, kPair = 4 };

constexpr int64_t kMaxIndex = (int64_t{1} << 56) - 1;  // of a sequence or a document: the purpose has the top byte

struct Randomness {
    uint64_t seed;
    uint32_t pass;

    // Counters of a sequence or document, but for their blocks, into lanes [from, to).
    void aim(PhiloxLanes& lanes, Purpose purpose, int64_t index, int from, int to) const {
        const uint32_t high = static_cast<uint32_t>(index >> 32) | static_cast<uint32_t>(purpose) << 24;
        for (int i = from; i < to; ++i) {
            lanes.low[i] = static_cast<uint32_t>(index);
            lanes.high[i] = high;
        }
    }

    void draw(PhiloxLanes& lanes) const { lanes.draw(pass, seed); }

    // The next blocks of counters that are aimed at one sequence or document.
    void draw_from(PhiloxLanes& lanes, uint32_t block) const {
        for (int i = 0; i < kLanes; ++i) lanes.block[i] = block + static_cast<uint32_t>(i);
        draw(lanes);
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
    Draws(const Randomness& randomness, Purpose purpose, int64_t index) : randomness_(randomness) {
        randomness.aim(lanes_, purpose, index, 0, kLanes);
    }

    int64_t below(int64_t n) {
        const uint64_t drawn = next();
        return scaled_below(static_cast<uint32_t>(drawn), static_cast<uint32_t>(drawn >> 32), static_cast<uint64_t>(n));
    }

    bool chance(uint64_t threshold) { return static_cast<uint32_t>(next()) < threshold; }

private:
    uint64_t next() {
        const uint32_t lane = count_ / 2 % kLanes;
        if (lane == 0 && count_ % 2 == 0) randomness_.draw_from(lanes_, count_ / 2);
        return (count_++ % 2 == 0 ? lanes_.first : lanes_.last)[lane];
    }

    const Randomness& randomness_;
    uint32_t count_ = 0;
    PhiloxLanes lanes_;
};

}  // namespace bert_fast
