// Index logic of taking rows out of a padded batch and putting them back.
#pragma once

#include "shared/platform.h"

namespace bert_fast {

// How many of the ascending, distinct indices [tokens] of places in 0 .. places - 1 are below `place`. At most
// places - tokens of them are missing, which bounds where to look: nowhere at all in a batch without padding.
BERT_FAST_HD int64_t indices_below(const int64_t* indices, int64_t tokens, int64_t places, int64_t place) {
    int64_t low = place - (places - tokens) > 0 ? place - (places - tokens) : 0;
    int64_t high = place < tokens ? place : tokens;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (indices[middle] < place) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// How a block of kMoveThreads shares rows of `units` vectors: `lanes` threads to a row, a power of two up to a warp,
// chosen so that as few as possible have nothing to do in a row's last step.
constexpr int kMoveThreads = 256;

inline int lanes_for(int64_t units) {
    int best = 1;
    int64_t least = units;
    for (int lanes = 2; lanes <= 32; lanes *= 2) {
        const int64_t covered = (units + lanes - 1) / lanes * lanes;
        if (covered <= least + least / 8) {
            best = lanes;
            least = covered < least ? covered : least;
        }
    }
    return best;
}

}  // namespace bert_fast
