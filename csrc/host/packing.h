#pragma once

#include <cstdint>
#include <utility>

namespace bert_fast {

// mask [B, S] bytes (not 0: visible) -> indices int64, room for B * S: the flat positions of visible tokens in order;
// cu_seqlens int32 [B + 1]: the packed rows' starts. Returns (visible tokens, longest row).
std::pair<int64_t, int64_t> unpad(const uint8_t* mask, int64_t batch, int64_t seqlen, int64_t* indices,
                                  int32_t* cu_seqlens);

// Sorts n sequences by length, longest first and stable, into order [n], and cuts that order into batches of at most
// max_tokens tokens in all (a longer sequence is alone) and max_sequences sequences (0: any number).
// offsets [n + 1]: where batches begin, the end included. Returns the number of batches.
int64_t token_budget_batches(const int64_t* lengths, int64_t n, int64_t max_tokens, int64_t max_sequences,
                             int64_t* order, int64_t* offsets);

}  // namespace bert_fast
