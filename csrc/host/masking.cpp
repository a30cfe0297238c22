#include "host/masking.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "host/checks.h"

namespace bert_fast {
namespace {

constexpr uint32_t kBelowMask = 3435973837u;    // 0.8 * 2^32
constexpr uint32_t kBelowRandom = 3865470566u;  // 0.9 * 2^32
constexpr int64_t kDrawnAtOnce = 256;           // words of choose_each

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

// One sequence of the batch. Work is done in passes without branches on random words, which no processor foresees.
template <typename Id>
struct Sequence {
    const Id* ids;
    int64_t start, length;
    const uint8_t* special;  // or null
    const MaskingRule& rule;
    const Randomness& randomness;
    int64_t index;

    uint8_t kind_at(int64_t i) const {
        const int64_t id = ids[i];
        if (id < 0 || id >= rule.vocab) {
            refuse("input_ids[" + std::to_string(start + i) + "] is " + std::to_string(id) +
                   ", outside the vocabulary of " + std::to_string(rule.vocab));
        }
        return special && special[i] ? kSpecialToken : rule.kinds[id];
    }

    // The positions whose words' draws choose them, a word taking that of its first token, into chosen [length].
    int64_t choose_each(uint64_t threshold, uint32_t* chosen) const {
        uint32_t words[kDrawnAtOnce];
        int64_t count = 0;
        bool hit = false, in_word = false;
        for (int64_t first = 0; first < length; first += kDrawnAtOnce) {
            const int64_t here = std::min(kDrawnAtOnce, length - first);
            for (int64_t k = 0; k < here; k += 4) {
                const PhiloxWords drawn =
                    randomness.words(Purpose::kSelect, index, static_cast<uint32_t>((first + k) / 4));
                std::copy_n(drawn.words, 4, words + k);
            }
            for (int64_t k = 0; k < here; ++k) {
                const uint8_t kind = kind_at(first + k);
                const bool joined = in_word & (kind == kContinuesWord);
                hit = joined ? hit : words[k] < threshold;
                in_word = !(kind & kSpecialToken);
                chosen[count] = static_cast<uint32_t>(first + k);
                count += hit & in_word;
            }
        }
        return count;
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

    void write(const uint32_t* chosen, int64_t count, Id* masked, Id* labels) const {
        std::copy_n(ids, length, masked);
        std::fill_n(labels, length, Id{-100});
        for (int64_t k = 0; k < count; ++k) {
            const uint32_t i = chosen[k];
            const auto [treatment, unused, high, low] = randomness.words(Purpose::kReplace, index, i).words;
            const Id other = static_cast<Id>(scaled_below(high, low, static_cast<uint64_t>(rule.vocab)));
            const Id unmasked = treatment < kBelowRandom ? other : ids[i];
            masked[i] = treatment < kBelowMask ? static_cast<Id>(rule.mask_id) : unmasked;
            labels[i] = ids[i];
        }
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
    std::vector<Word> words;
    std::vector<uint32_t> chosen;
    for (int64_t b = 0; b < sequences; ++b) {
        const int64_t start = cu_seqlens[b], length = cu_seqlens[b + 1] - start;
        if (static_cast<int64_t>(chosen.size()) <= length) chosen.resize(length + 1);  // one is written beyond the last
        const Sequence<Id> sequence{ids + start, start, length, special ? special + start : nullptr, rule, randomness,
                                    indices[b]};
        const int64_t count = rule.max_predictions < 0 ? sequence.choose_each(threshold, chosen.data())
                                                       : sequence.choose_exactly(&words, chosen.data());
        sequence.write(chosen.data(), count, masked + start, labels + start);
    }
}

template void mask_tokens(const int32_t*, const int64_t*, int64_t, const int64_t*, const uint8_t*, const MaskingRule&,
                          const Randomness&, int32_t*, int32_t*);
template void mask_tokens(const int64_t*, const int64_t*, int64_t, const int64_t*, const uint8_t*, const MaskingRule&,
                          const Randomness&, int64_t*, int64_t*);

}  // namespace bert_fast
