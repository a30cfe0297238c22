#pragma once

#include <cstdint>

namespace bert_fast {

constexpr int64_t kMaxWindow = int64_t{1} << 24;

// Packs n sequences into windows of at most `window` tokens, best-fit decreasing: longest first (equal lengths in their
// order), each into the window with the least room that suffices, of several the one that was used last.
// order [n]: sequences window by window, in the order they were placed; offsets [n + 1]: where windows begin in it, the
// end included. Returns the number of windows. O(n + window + n log64 window).
int64_t pack_windows(const int64_t* lengths, int64_t n, int64_t window, int64_t* order, int64_t* offsets);

}  // namespace bert_fast
