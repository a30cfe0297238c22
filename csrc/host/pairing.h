#pragma once

#include <cstdint>

#include "host/random.h"

namespace bert_fast {

// Token ids of all sentences one after another; sentence s is tokens sentence_offsets[s] .. sentence_offsets[s + 1],
// document d is sentences document_offsets[d] .. document_offsets[d + 1]. No sentence and no document is empty.
struct Corpus {
    const int64_t* sentence_offsets;  // [sentences + 1]
    const int64_t* document_offsets;  // [documents + 1]
    int64_t documents;
};

// Tokens of the corpus: the pair is a_begin .. a_end, b_begin .. b_end.
struct PairRange {
    int64_t a_begin, a_end, b_begin, b_end;
};

struct PairingRule {
    int64_t max_tokens;  // of A and B together
    double short_probability;
};

// Next-sentence prediction as google-research/bert's create_pretraining_data.py makes its pairs, from the documents
// `chosen` [n], in that order. ranges and is_random have room for as many pairs as the chosen documents have sentences;
// counts [n] receives each document's number of pairs. Returns the number of all.
int64_t pair_sentences(const Corpus& corpus, const int64_t* chosen, int64_t n, const PairingRule& rule,
                       const Randomness& randomness, PairRange* ranges, int64_t* is_random, int64_t* counts);

// Writes [CLS] A [SEP] B [SEP] of every pair, one after another, with token types 0 up to the first [SEP] and 1 after.
// out and types have room for the ranges' tokens and 3 more a pair.
template <typename Id>
void pack_pairs(const Id* tokens, const PairRange* ranges, int64_t n, int64_t cls_id, int64_t sep_id, Id* out,
                Id* types);

}  // namespace bert_fast
