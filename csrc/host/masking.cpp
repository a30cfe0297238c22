#include "host/masking.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "host/checks.h"

namespace bert_fast {
namespace {

constexpr uint32_t kBelowMask = 3435973837u;    // 0.8 * 2^32
constexpr uint32_t kBelowRandom = 3865470566u;  // 0.9 * 2^32

using Word = std::pair<int64_t, int64_t>;  // positions [first, last) in its sequence

void check(const MaskingRule& rule, const int64_t* cu_seqlens, int64_t sequences, const int64_t* indices) {
    require_at_least("sequences", sequences, 0);
    require_at_least("vocab", rule.vocab, 1);
    if (rule.vocab > INT32_MAX) refuse("vocab must be below 2^31, got " + std::to_string(rule.vocab));
    require_pointer("kinds", rule.kinds, true);
    require_pointer("cu_seqlens", cu_seqlens, true);
    require_pointer("indices", indices, sequences > 0);
    if (rule.mask_id < 0 || rule.mask_id >= rule.vocab) {
        refuse("mask_id must be an id of the vocabulary, got " + std::to_string(rule.mask_id));
    }
    if (!(rule.probability >= 0 && rule.probability <= 1)) {
        refuse("probability must be in [0, 1], got " + std::to_string(rule.probability));
    }
    if (cu_seqlens[0] != 0) refuse("cu_seqlens must begin with 0, got " + std::to_string(cu_seqlens[0]));
    for (int64_t b = 0; b < sequences; ++b) {
        if (indices[b] < 0 || indices[b] > kMaxIndex) {
            refuse("indices must be in 0 .. 2^56 - 1, got " + std::to_string(indices[b]));
        }
        if (cu_seqlens[b + 1] < cu_seqlens[b] || cu_seqlens[b + 1] - cu_seqlens[b] > UINT32_MAX) {
            refuse("cu_seqlens must rise by less than 2^32 a sequence, got " + std::to_string(cu_seqlens[b]) +
                   " and then " + std::to_string(cu_seqlens[b + 1]));
        }
    }
}

// One sequence of the batch, with the choice of its tokens still to be made.
template <typename Id>
class Sequence {
public:
    Sequence(const Id* ids, int64_t start, int64_t length, const uint8_t* special, const MaskingRule& rule,
             const Randomness& randomness, int64_t index, Id* masked, Id* labels)
        : ids_(ids + start), length_(length), start_(start), special_(special ? special + start : nullptr), rule_(rule),
          randomness_(randomness), index_(index), masked_(masked + start), labels_(labels + start) {}

    // A word takes the draw of its first token.
    void choose_each(uint64_t threshold) {
        PhiloxWords words{};
        bool chosen = false, in_word = false;
        for (int64_t i = 0; i < length_; ++i) {
            if (i % 4 == 0) words = randomness_.words(Purpose::kSelect, index_, static_cast<uint32_t>(i / 4));
            const uint32_t lanes[4] = {words.x, words.y, words.z, words.w};
            const uint8_t kind = kind_at(i);
            if (!(in_word && kind == kContinuesWord)) chosen = lanes[i % 4] < threshold;
            in_word = !(kind & kSpecialToken);
            masked_[i] = ids_[i];
            labels_[i] = -100;
            if (chosen && in_word) choose(i);
        }
    }

    // Words in random order, each taken if it fits what is left of the budget.
    void choose_exactly(std::vector<Word>* words) {
        words->clear();
        bool in_word = false;
        for (int64_t i = 0; i < length_; ++i) {
            const uint8_t kind = kind_at(i);
            if (in_word && kind == kContinuesWord) {
                words->back().second = i + 1;
            } else if (!(kind & kSpecialToken)) {
                words->emplace_back(i, i + 1);
            }
            in_word = !(kind & kSpecialToken);
            masked_[i] = ids_[i];
            labels_[i] = -100;
        }
        const double share = std::nearbyint(static_cast<double>(length_) * rule_.probability);
        int64_t room = std::min(rule_.max_predictions, std::max<int64_t>(1, static_cast<int64_t>(share)));
        Draws draws(randomness_, Purpose::kShuffle, index_);
        const int64_t n = static_cast<int64_t>(words->size());
        for (int64_t k = 0; k < n && room > 0; ++k) {
            std::swap((*words)[k], (*words)[k + draws.below(n - k)]);
            const auto [first, last] = (*words)[k];
            if (last - first > room) continue;
            room -= last - first;
            for (int64_t i = first; i < last; ++i) choose(i);
        }
    }

private:
    uint8_t kind_at(int64_t i) const {
        const int64_t id = ids_[i];
        if (id < 0 || id >= rule_.vocab) {
            refuse("input_ids[" + std::to_string(start_ + i) + "] is " + std::to_string(id) +
                   ", outside the vocabulary of " + std::to_string(rule_.vocab));
        }
        return special_ && special_[i] ? kSpecialToken : rule_.kinds[id];
    }

    void choose(int64_t i) {
        const PhiloxWords words = randomness_.words(Purpose::kReplace, index_, static_cast<uint32_t>(i));
        labels_[i] = ids_[i];
        if (words.x < kBelowMask) {
            masked_[i] = static_cast<Id>(rule_.mask_id);
        } else if (words.x < kBelowRandom) {
            masked_[i] = static_cast<Id>(scaled_below(words.z, words.w, static_cast<uint64_t>(rule_.vocab)));
        }
    }

    const Id* ids_;
    int64_t length_, start_;
    const uint8_t* special_;
    const MaskingRule& rule_;
    const Randomness& randomness_;
    int64_t index_;
    Id* masked_;
    Id* labels_;
};

}  // namespace

template <typename Id>
void mask_tokens(const Id* ids, const int64_t* cu_seqlens, int64_t sequences, const int64_t* indices,
                 const uint8_t* special, const MaskingRule& rule, const Randomness& randomness, Id* masked,
                 Id* labels) {
    check(rule, cu_seqlens, sequences, indices);
    const bool some = cu_seqlens[sequences] > 0;
    require_pointer("input_ids", ids, some);
    require_pointer("masked", masked, some);
    require_pointer("labels", labels, some);
    const uint64_t threshold = word_threshold(rule.probability);
    std::vector<Word> words;
    for (int64_t b = 0; b < sequences; ++b) {
        const int64_t start = cu_seqlens[b], length = cu_seqlens[b + 1] - start;
        Sequence<Id> sequence(ids, start, length, special, rule, randomness, indices[b], masked, labels);
        if (rule.max_predictions < 0) {
            sequence.choose_each(threshold);
        } else {
            sequence.choose_exactly(&words);
        }
    }
}

template void mask_tokens(const int32_t*, const int64_t*, int64_t, const int64_t*, const uint8_t*, const MaskingRule&,
                          const Randomness&, int32_t*, int32_t*);
template void mask_tokens(const int64_t*, const int64_t*, int64_t, const int64_t*, const uint8_t*, const MaskingRule&,
                          const Randomness&, int64_t*, int64_t*);

}  // namespace bert_fast
