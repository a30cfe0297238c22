#include "host/masking.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
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
            refuse("indices must be in 0 .. 2**56 - 1, not " + std::to_string(indices[b]));
        }
        const int64_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
        if (end < begin || end - begin > UINT32_MAX) {
            refuse("cu_seqlens must rise by " + std::string(end < begin ? "at least 0" : "less than 2**32") +
                   ", but has " + std::to_string(begin) + " and then " + std::to_string(end));
        }
    }
}

// What stands in place of chosen tokens. Words are drawn for kLanes of them at a time, of whichever sequences.
template <typename Id>
class Replacements {
public:
    Replacements(const MaskingRule& rule, const Randomness& randomness, const Id* ids, Id* masked, Id* labels)
        : rule_(rule), randomness_(randomness), ids_(ids), masked_(masked), labels_(labels) {}

    // The chosen tokens of the sequence `index`, which begins at `start`.
    void add(const uint32_t* chosen, int64_t count, int64_t index, int64_t start) {
        while (count > 0) {
            const int n = static_cast<int>(std::min<int64_t>(kLanes - waiting_, count));
            randomness_.aim(lanes_, Purpose::kReplace, index, waiting_, waiting_ + n);
            for (int i = 0; i < n; ++i) {
                lanes_.block[waiting_ + i] = chosen[i];
                places_[waiting_ + i] = start + chosen[i];
            }
            waiting_ += n;
            chosen += n;
            count -= n;
            if (waiting_ == kLanes) write();
        }
    }

    void write() {
        randomness_.draw(lanes_);
        for (int i = 0; i < waiting_; ++i) {
            const int64_t at = places_[i];
            const uint32_t treatment = lanes_.word(i, 0);
            const uint64_t vocab = static_cast<uint64_t>(rule_.vocab);
            const Id other = static_cast<Id>(scaled_below(lanes_.word(i, 2), lanes_.word(i, 3), vocab));
            const Id unmasked = treatment < kBelowRandom ? other : ids_[at];
            masked_[at] = treatment < kBelowMask ? static_cast<Id>(rule_.mask_id) : unmasked;
            labels_[at] = ids_[at];
        }
        waiting_ = 0;
    }

private:
    const MaskingRule& rule_;
    const Randomness& randomness_;
    const Id* ids_;
    Id *masked_, *labels_;
    int waiting_ = 0;
    int64_t places_[kLanes];
    PhiloxLanes lanes_{};  // those that are not waiting are drawn for, too
};

// One sequence of the batch. Work is done in passes without branches on random words, which no processor foresees.
template <typename Id>
struct Sequence {
    const Id* ids;
    int64_t start, length;
    const uint8_t* special;  // or null
    const MaskingRule& rule;
    const Randomness& randomness;
    int64_t index;

    // Before anything else: what is not chosen stays, and is not predicted. Refuses ids outside the vocabulary.
    void copy(Id* masked, Id* labels) const {
        using Bits = std::make_unsigned_t<Id>;
        const Bits last = static_cast<Bits>(rule.vocab - 1);
        Bits outside = 0;  // its top bit is set once an id is
        for (int64_t i = 0; i < length; ++i) {
            const Bits id = static_cast<Bits>(ids[i]);
            outside |= id | (last - id);
            masked[i] = ids[i];
            labels[i] = -100;
        }
        if (static_cast<Id>(outside) >= 0) return;
        const auto is_outside = [this](int64_t id) { return id < 0 || id >= rule.vocab; };
        const Id* const wrong = std::find_if(ids, ids + length, is_outside);
        refuse("input_ids[" + std::to_string(start + (wrong - ids)) + "] is " + std::to_string(*wrong) +
               ", outside the vocabulary of " + std::to_string(rule.vocab));
    }

    uint8_t kind_at(int64_t i) const { return special && special[i] ? kSpecialToken : rule.kinds[ids[i]]; }

    // The positions whose words' draws choose them, a word taking that of its first token, into chosen [length + 1].
    int64_t choose_each(uint64_t threshold, bool whole_words, uint32_t* chosen) const {
        constexpr int64_t kAtOnce = 4 * kLanes;
        PhiloxLanes lanes;
        randomness.aim(lanes, Purpose::kSelect, index, 0, kLanes);
        int64_t count = 0;
        bool hit = false, in_word = false;
        for (int64_t first = 0; first < length; first += kAtOnce) {
            randomness.draw_from(lanes, static_cast<uint32_t>(first / 4));
            bool below[kAtOnce];
            for (int i = 0; i < kLanes; ++i) {
                for (int w = 0; w < 4; ++w) below[4 * i + w] = lanes.word(i, w) < threshold;
            }
            const int64_t here = std::min(kAtOnce, length - first);
            for (int64_t k = 0; k < here; ++k) {
                chosen[count] = static_cast<uint32_t>(first + k);
                if (whole_words) {
                    const uint8_t kind = kind_at(first + k);
                    const bool joined = in_word & (kind == kContinuesWord);
                    hit = joined ? hit : below[k];
                    in_word = !(kind & kSpecialToken);
                    count += hit & in_word;
                } else {
                    count += below[k];
                }
            }
        }
        return whole_words ? count : without_special(chosen, count);
    }

    int64_t without_special(uint32_t* chosen, int64_t count) const {
        int64_t kept = 0;
        for (int64_t k = 0; k < count; ++k) {
            const uint32_t i = chosen[k];
            chosen[kept] = i;
            kept += !(kind_at(i) & kSpecialToken);
        }
        return kept;
    }

    // Words in random order, each taken if it fits what is left of the budget.
    int64_t choose_exactly(std::vector<Word>* words, uint32_t* chosen) const {
        words->clear();
        bool in_word = false;
        for (int64_t i = 0; i < length; ++i) {
            const uint8_t kind = kind_at(i);
            if (in_word && kind == kContinuesWord) {
                words->back().second = i + 1;
            } else if (!(kind & kSpecialToken)) {
                words->emplace_back(i, i + 1);
            }
            in_word = !(kind & kSpecialToken);
        }
        const double share = std::nearbyint(static_cast<double>(length) * rule.probability);
        const int64_t budget = std::min(rule.max_predictions, std::max<int64_t>(1, static_cast<int64_t>(share)));
        Draws draws(randomness, Purpose::kShuffle, index);
        const int64_t n = static_cast<int64_t>(words->size());
        int64_t count = 0;
        for (int64_t k = 0; k < n && count < budget; ++k) {
            std::swap((*words)[k], (*words)[k + draws.below(n - k)]);
            const auto [first, last] = (*words)[k];
            if (last - first > budget - count) continue;
            for (int64_t i = first; i < last; ++i) chosen[count++] = static_cast<uint32_t>(i);
        }
        return count;
    }
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
    const bool whole_words = std::memchr(rule.kinds, kContinuesWord, static_cast<size_t>(rule.vocab)) != nullptr;
    std::vector<Word> words;
    std::vector<uint32_t> chosen;
    Replacements<Id> replacements(rule, randomness, ids, masked, labels);
    for (int64_t b = 0; b < sequences; ++b) {
        const int64_t start = cu_seqlens[b], length = cu_seqlens[b + 1] - start;
        if (static_cast<int64_t>(chosen.size()) <= length) chosen.resize(length + 1);  // one is written beyond the last
        const Sequence<Id> sequence{ids + start, start, length, special ? special + start : nullptr, rule, randomness,
                                    indices[b]};
        sequence.copy(masked + start, labels + start);
        const int64_t count = rule.max_predictions < 0 ? sequence.choose_each(threshold, whole_words, chosen.data())
                                                       : sequence.choose_exactly(&words, chosen.data());
        replacements.add(chosen.data(), count, indices[b], start);
    }
    replacements.write();
}

template void mask_tokens(const int32_t*, const int64_t*, int64_t, const int64_t*, const uint8_t*, const MaskingRule&,
                          const Randomness&, int32_t*, int32_t*);
template void mask_tokens(const int64_t*, const int64_t*, int64_t, const int64_t*, const uint8_t*, const MaskingRule&,
                          const Randomness&, int64_t*, int64_t*);

}  // namespace bert_fast
