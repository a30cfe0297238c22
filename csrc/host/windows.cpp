#include "host/windows.h"

#include <vector>

#include "host/checks.h"

namespace bert_fast {
namespace {

// A set of numbers 0 .. size - 1: one bit each, and above it one bit for each 64 bits, up to a single word.
class NumberSet {
public:
    explicit NumberSet(int64_t size) {
        do {
            size = (size + 63) / 64;
            levels_.emplace_back(static_cast<size_t>(size));
        } while (size > 1);
    }

    void add(int64_t number) {
        for (auto& level : levels_) {
            level[number / 64] |= bit(number);
            number /= 64;
        }
    }

    void remove(int64_t number) {
        for (auto& level : levels_) {
            level[number / 64] &= ~bit(number);
            if (level[number / 64] != 0) return;
            number /= 64;
        }
    }

    // The smallest member that is at least `number`; -1 if there is none.
    int64_t at_least(int64_t number) const {
        for (size_t height = 0; height < levels_.size(); ++height) {
            const auto& level = levels_[height];
            if (number / 64 >= static_cast<int64_t>(level.size())) return -1;
            if (const uint64_t rest = level[number / 64] & ~(bit(number) - 1)) {
                number = number / 64 * 64 + __builtin_ctzll(rest);
                while (height-- > 0) number = number * 64 + __builtin_ctzll(levels_[height][number]);
                return number;
            }
            number = number / 64 + 1;  // every later word
        }
        return -1;
    }

private:
    static uint64_t bit(int64_t number) { return uint64_t{1} << number % 64; }

    std::vector<std::vector<uint64_t>> levels_;
};

// Open windows by the room that is left in them; those of equal room form a stack.
class OpenWindows {
public:
    OpenWindows(int64_t window, int64_t n) : rooms_(window + 1), top_(window + 1, -1), below_(n, -1) {}

    int64_t take(int64_t room) {
        const int64_t taken = top_[room];
        top_[room] = below_[taken];
        if (top_[room] < 0) rooms_.remove(room);
        return taken;
    }

    void put(int64_t window, int64_t room) {
        if (top_[room] < 0) rooms_.add(room);
        below_[window] = top_[room];
        top_[room] = window;
    }

    int64_t least_room(int64_t length) const { return rooms_.at_least(length); }

private:
    NumberSet rooms_;
    std::vector<int64_t> top_, below_;
};

std::vector<int64_t> longest_first(const int64_t* lengths, int64_t n, int64_t window) {
    std::vector<int64_t> places(window + 2);  // places[window - length + 1]: counts, then where a length begins
    for (int64_t i = 0; i < n; ++i) ++places[window - lengths[i] + 1];
    for (int64_t k = 0; k <= window; ++k) places[k + 1] += places[k];
    std::vector<int64_t> sorted(n);
    for (int64_t i = 0; i < n; ++i) sorted[places[window - lengths[i]]++] = i;
    return sorted;
}

}  // namespace

int64_t pack_windows(const int64_t* lengths, int64_t n, int64_t window, int64_t* order, int64_t* offsets) {
    require_at_least("n", n, 0);
    require_at_least("window", window, 1);
    if (window > kMaxWindow) refuse("window must be at most 2^24, got " + std::to_string(window));
    require_pointer("lengths", lengths, n > 0);
    require_pointer("order", order, n > 0);
    require_pointer("offsets", offsets, true);
    for (int64_t i = 0; i < n; ++i) {
        if (lengths[i] < 0 || lengths[i] > window) {
            refuse("lengths[" + std::to_string(i) + "] must be in 0 .. " + std::to_string(window) + ", got " +
                   std::to_string(lengths[i]));
        }
    }
    const std::vector<int64_t> sorted = longest_first(lengths, n, window);
    std::vector<int64_t> window_of(n);
    OpenWindows open(window, n);
    int64_t windows = 0;
    offsets[0] = 0;
    for (int64_t k = 0; k < n; ++k) {
        const int64_t length = lengths[sorted[k]];
        const int64_t room = open.least_room(length);
        const int64_t chosen = room < 0 ? windows++ : open.take(room);
        open.put(chosen, (room < 0 ? window : room) - length);
        window_of[k] = chosen;
        if (room < 0) offsets[chosen + 1] = 0;
        ++offsets[chosen + 1];
    }
    for (int64_t w = 0; w < windows; ++w) offsets[w + 1] += offsets[w];
    std::vector<int64_t> next(offsets, offsets + windows);
    for (int64_t k = 0; k < n; ++k) order[next[window_of[k]]++] = sorted[k];
    return windows;
}

}  // namespace bert_fast
