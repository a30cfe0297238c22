#pragma once

#include <cstdint>

#include "host/random.h"

namespace bert_fast {

// Bits of a vocabulary entry's kind.
constexpr uint8_t kSpecialToken = 1;   // never chosen
constexpr uint8_t kContinuesWord = 2;  // chosen together with the tokens before it ("##ing")

struct MaskingRule {
    const uint8_t* kinds;  // [vocab]
    int64_t vocab;
    int64_t mask_id;
    double probability;
    int64_t max_predictions;  // below 0: each word by itself with `probability`; else an exact count, this at most
};

// Masked language modelling (Devlin et al., 2019). Of the chosen tokens 80% become mask_id, 10% any id of the
// vocabulary, 10% stay; labels hold what was there, and -100 for all other tokens.
// ids, masked, labels [T]; cu_seqlens [sequences + 1], from 0 to T; indices [sequences] number the sequences in the
// data set; special [T] or null: not 0 for tokens that are never chosen, besides those of a special kind.
template <typename Id>
void mask_tokens(const Id* ids, const int64_t* cu_seqlens, int64_t sequences, const int64_t* indices,
                 const uint8_t* special, const MaskingRule& rule, const Randomness& randomness, Id* masked,
                 Id* labels);

}  // namespace bert_fast
