// Index logic of the unpad scan. The mask is read as one flat array of B * S bytes, so a row's start in the packed
// batch is the number of visible positions before flat position row * S, and no row needs a block of its own.
#pragma once

#include "shared/platform.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

namespace bert_fast {

constexpr int kMaskBytes = 16;  // per thread: one 16-byte load
constexpr int64_t kMaxTiles = 4096;

// The flat mask is cut into at most kMaxTiles tiles, one block each, so that one block can scan the tiles' counts.
struct Tiling {
    int64_t positions;  // B * S
    int64_t tile;       // positions in a tile: a multiple of the chunk a block reads at once
    int64_t tiles;
};

BERT_FAST_HD Tiling make_tiling(int64_t batch, int64_t seqlen, int64_t chunk) {
    const int64_t positions = batch * seqlen;
    const int64_t chunks = (positions + chunk - 1) / chunk;
    const int64_t tile = ((chunks + kMaxTiles - 1) / kMaxTiles) * chunk;
    return {positions, tile, tile == 0 ? 0 : (positions + tile - 1) / tile};
}

BERT_FAST_HD int count_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __popc(bits);
#else
    return __builtin_popcount(bits);
#endif
}

// Bit k of the result says whether byte k of the word is not zero.
BERT_FAST_HD uint32_t nonzero_bytes(uint32_t word) {
    const uint32_t high_bits = (((word & 0x7f7f7f7f) + 0x7f7f7f7f) | word) & 0x80808080;
    return ((high_bits >> 7) * 0x10204080u) >> 28;
}

// The visibility of positions first .. first + 15 as bits; those past the end are hidden.
BERT_FAST_HD uint32_t visible_bits(const uint8_t* mask, int64_t first, int64_t positions,
                                   [[maybe_unused]] bool aligned) {
    if (first >= positions) return 0;
    uint32_t bits = 0;
#ifdef __CUDA_ARCH__
    if (aligned && first + kMaskBytes <= positions) {
        const uint4 words = __ldg(reinterpret_cast<const uint4*>(mask + first));
        return nonzero_bytes(words.x) | nonzero_bytes(words.y) << 4 | nonzero_bytes(words.z) << 8 |
               nonzero_bytes(words.w) << 12;
    }
#endif
    for (int k = 0; k < kMaskBytes && first + k < positions; ++k) {
        bits |= static_cast<uint32_t>(mask[first + k] != 0) << k;
    }
    return bits;
}

// cu_seqlens is int32. A larger total is reported through the int64 total, and must be checked there.
BERT_FAST_HD int32_t clamp_to_int32(int64_t x) { return x > INT32_MAX ? INT32_MAX : static_cast<int32_t>(x); }

// Writes the start of every row that begins in first .. first + 15; `before` visible positions precede `first`.
BERT_FAST_HD void write_row_starts(uint32_t bits, int64_t first, int64_t before, int64_t positions, int64_t seqlen,
                                   int32_t* cu_seqlens) {
    const int64_t end = first + kMaskBytes < positions ? first + kMaskBytes : positions;
    int64_t row = (first + seqlen - 1) / seqlen;
    for (int64_t start = row * seqlen; start < end; start += seqlen, ++row) {
        const uint32_t earlier = bits & ((1u << (start - first)) - 1);
        cu_seqlens[row] = clamp_to_int32(before + count_bits(earlier));
    }
}

// Packs a thread's visible positions, relative to its chunk, from `rank` on.
BERT_FAST_HD void write_visible(uint32_t bits, int thread, int rank, uint16_t* packed) {
    BERT_FAST_UNROLL
    for (int k = 0; k < kMaskBytes; ++k) {
        if (bits >> k & 1) packed[rank++] = static_cast<uint16_t>(thread * kMaskBytes + k);
    }
}

}  // namespace bert_fast
