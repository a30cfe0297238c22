// What the CUDA sources offer to module.cpp, which the host compiler builds: no CUDA header here. Pointers are device
// pointers unless said otherwise. Every function checks its sizes (std::invalid_argument), launches on `stream` of
// `device` with the caller's device restored, allocates nothing, waits for nothing, and throws std::runtime_error with
// its name and CUDA's message when a launch fails.
#pragma once

#include <cstdint>
#include <string>

namespace bert_fast {

// Why CUDA cannot be used by this build, or "": driver and runtime versions first, then the devices. With a device
// of at least 0, also whether this build has code for it (this creates the device's context).
std::string cuda_status(int device);

// mask bytes [B, S] -> indices int64 [B * S], cu_seqlens int32 [B + 1], stats int64 [2] = (visible, longest row).
// With more than 2^31 - 1 visible tokens cu_seqlens saturates: check stats[0]. The result is the same on every run.
void unpad_cuda(const uint8_t* mask, int64_t batch, int64_t seqlen, int64_t* indices, int32_t* cu_seqlens,
                int64_t* stats, void* workspace, int64_t workspace_bytes, int device, void* stream);
int64_t unpad_cuda_workspace(int64_t batch, int64_t seqlen);

enum class DType { kFloat32, kFloat16, kBFloat16 };

// Sizes of embedding_layer_norm: T tokens of H features, and the rows of the three tables.
struct EmbeddingSizes {
    int64_t tokens, hidden, vocab, positions, types;
};

// out [T, H] = LayerNorm(word[input_ids] + type[token_type_ids] + position[position_ids]) * gamma + beta. Tables,
// gamma, beta and out have one dtype; sums and statistics are float32. token_type_ids null: type row 0. mean and rstd
// float32 [T], both null if not wanted. An id outside its table reads the nearest row and sets *bad_id, if it is 0, to
// 1 (word), 2 (position) or 3 (type).
void embedding_layer_norm_cuda(const int64_t* input_ids, const int64_t* token_type_ids, const int64_t* position_ids,
                               const void* word, const void* position, const void* type, const void* gamma,
                               const void* beta, void* out, float* mean, float* rstd, const EmbeddingSizes& sizes,
                               float eps, DType dtype, int32_t* bad_id, int device, void* stream);

}  // namespace bert_fast
