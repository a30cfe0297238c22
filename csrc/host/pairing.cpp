#include "host/pairing.h"

#include <algorithm>
#include <utility>

#include "host/checks.h"

namespace bert_fast {
namespace {

constexpr uint64_t kHalf = uint64_t{1} << 31;

void check(const Corpus& corpus, const int64_t* chosen, int64_t n, const PairingRule& rule) {
    require_at_least("n", n, 0);
    require_at_least("documents", corpus.documents, 2);
    if (corpus.documents > UINT32_MAX) refuse("documents must be below 2^32");
    require_at_least("max_tokens", rule.max_tokens, 2);
    if (rule.max_tokens > INT32_MAX) refuse("max_tokens must be below 2^31, got " + std::to_string(rule.max_tokens));
    if (!(rule.short_probability >= 0 && rule.short_probability <= 1)) {
        refuse("short_probability must be in [0, 1], got " + std::to_string(rule.short_probability));
    }
    require_pointer("sentence_offsets", corpus.sentence_offsets, true);
    require_pointer("document_offsets", corpus.document_offsets, true);
    require_pointer("chosen", chosen, n > 0);
    for (int64_t k = 0; k < n; ++k) {
        if (chosen[k] < 0 || chosen[k] >= corpus.documents) {
            refuse("document " + std::to_string(chosen[k]) + " is not one of " + std::to_string(corpus.documents));
        }
    }
}

class DocumentPairs {
public:
    DocumentPairs(const Corpus& corpus, int64_t document, const PairingRule& rule, const Randomness& randomness)
        : corpus_(corpus), document_(document), rule_(rule), draws_(randomness, Purpose::kPair, document) {}

    int64_t write(PairRange* ranges, int64_t* is_random) {
        int64_t target = rule_.max_tokens;
        if (draws_.chance(word_threshold(rule_.short_probability))) target = 2 + draws_.below(rule_.max_tokens - 1);
        const int64_t last = corpus_.document_offsets[document_ + 1];
        int64_t count = 0, begin = corpus_.document_offsets[document_];
        while (begin < last) {
            int64_t end = begin + 1;
            while (end < last && tokens(begin, end) < target) ++end;
            begin = write_pair(begin, end, target, ranges + count, is_random + count);
            ++count;
        }
        return count;
    }

private:
    int64_t tokens(int64_t begin, int64_t end) const {
        return corpus_.sentence_offsets[end] - corpus_.sentence_offsets[begin];
    }

    // The pair of a chunk of sentences; returns where the next chunk begins: a random B leaves the rest of this one.
    int64_t write_pair(int64_t begin, int64_t end, int64_t target, PairRange* range, int64_t* is_random) {
        const int64_t sentences = end - begin;
        const int64_t middle = begin + (sentences > 1 ? 1 + draws_.below(sentences - 1) : 1);
        *is_random = sentences == 1 || draws_.chance(kHalf);
        int64_t b_begin = middle, b_end = end;
        if (*is_random) {
            int64_t other = draws_.below(corpus_.documents - 1);
            other += other >= document_;
            const int64_t first = corpus_.document_offsets[other], last = corpus_.document_offsets[other + 1];
            b_begin = first + draws_.below(last - first);
            b_end = b_begin + 1;
            while (b_end < last && tokens(b_begin, b_end) < target - tokens(begin, middle)) ++b_end;
        }
        const int64_t* offsets = corpus_.sentence_offsets;
        *range = {offsets[begin], offsets[middle], offsets[b_begin], offsets[b_end]};
        truncate(range);
        return *is_random ? middle : end;
    }

    // The longer of the two (B if they are equally long) loses tokens, from its front or its back.
    void truncate(PairRange* range) {
        int64_t a = range->a_end - range->a_begin, b = range->b_end - range->b_begin;
        while (a + b > rule_.max_tokens) {
            const bool front = draws_.chance(kHalf), first = a > b;
            int64_t& begin = first ? range->a_begin : range->b_begin;
            int64_t& end = first ? range->a_end : range->b_end;
            (front ? begin : end) += front ? 1 : -1;
            --(first ? a : b);
        }
    }

    const Corpus& corpus_;
    int64_t document_;
    const PairingRule& rule_;
    Draws draws_;
};

}  // namespace

int64_t pair_sentences(const Corpus& corpus, const int64_t* chosen, int64_t n, const PairingRule& rule,
                       const Randomness& randomness, PairRange* ranges, int64_t* is_random, int64_t* counts) {
    check(corpus, chosen, n, rule);
    require_pointer("ranges", ranges, n > 0);
    require_pointer("is_random", is_random, n > 0);
    require_pointer("counts", counts, n > 0);
    int64_t total = 0;
    for (int64_t k = 0; k < n; ++k) {
        counts[k] = DocumentPairs(corpus, chosen[k], rule, randomness).write(ranges + total, is_random + total);
        total += counts[k];
    }
    return total;
}

template <typename Id>
void pack_pairs(const Id* tokens, const PairRange* ranges, int64_t n, int64_t cls_id, int64_t sep_id, Id* out,
                Id* types) {
    require_at_least("n", n, 0);
    for (const auto& [name, pointer] : {std::pair<const char*, const void*>{"tokens", tokens}, {"ranges", ranges},
                                        {"out", out}, {"types", types}}) {
        require_pointer(name, pointer, n > 0);
    }
    for (int64_t k = 0; k < n; ++k) {
        const auto [a_begin, a_end, b_begin, b_end] = ranges[k];
        Id* const first = out;
        *out++ = static_cast<Id>(cls_id);
        out = std::copy(tokens + a_begin, tokens + a_end, out);
        *out++ = static_cast<Id>(sep_id);
        types = std::fill_n(types, out - first, Id{0});
        Id* const second = out;
        out = std::copy(tokens + b_begin, tokens + b_end, out);
        *out++ = static_cast<Id>(sep_id);
        types = std::fill_n(types, out - second, Id{1});
    }
}

template void pack_pairs(const int32_t*, const PairRange*, int64_t, int64_t, int64_t, int32_t*, int32_t*);
template void pack_pairs(const int64_t*, const PairRange*, int64_t, int64_t, int64_t, int64_t*, int64_t*);

}  // namespace bert_fast
