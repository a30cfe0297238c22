// What the CUDA sources offer to module.cpp, which the host compiler builds: no CUDA header here. Pointers are device
// pointers unless said otherwise. Every function checks its sizes (std::invalid_argument), launches on `stream` of
// `device` with the caller's device restored, allocates nothing, waits for nothing, and throws std::runtime_error with
// its name and CUDA's message when a launch fails.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shared/optim_math.h"

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

// Dropout with probability p; seed null: none. What is dropped: shared/dropout.h.
struct DropoutOptions {
    const int64_t* seed;
    double p;
    int64_t site;
};

// T tokens of H features, and the rows of the three tables. Tables, gamma and beta are contiguous and of one dtype.
struct EmbeddingInputs {
    const int64_t* input_ids;
    const int64_t* token_type_ids;  // null: type row 0
    const int64_t* position_ids;
    const void* word;
    const void* position;
    const void* type;
    const void* gamma;
    int64_t tokens, hidden, vocab, positions, types;
    DType dtype;
    DropoutOptions dropout;
};

// out [T, H] = dropout(LayerNorm(word[input_ids] + type[token_type_ids] + position[position_ids]) * gamma + beta), in
// the tables' dtype; sums and statistics are float32. mean and rstd float32 [T], both null if not wanted. An id outside
// its table reads the nearest row and sets *bad_id, if it is 0, to 1 (word), 2 (position) or 3 (type).
void embedding_layer_norm_cuda(const EmbeddingInputs& inputs, const void* beta, float eps, void* out, float* mean,
                               float* rstd, int32_t* bad_id, int device, void* stream);

// What the backward of embedding_layer_norm_cuda writes, in the tables' dtype: d_gamma and d_beta [H]; d_type
// [types, H], or null, for at most kFewTypes rows; and the gradient of each token's sum of rows, d_sum [T, H]. Where that
// is null it is added to the tokens' rows of `tables` instead, in any order: float32, zeros before, each may be null.
struct EmbeddingGradients {
    void* d_sum;
    void* d_gamma;
    void* d_beta;
    void* d_type;
    float* tables[3];  // word, position, type
    int64_t skip;      // the row of the first to which nothing is added; -1: none
};
constexpr int64_t kFewTypes = 2;

// dy [T, H] in the tables' dtype; mean and rstd as saved. The same on every run, but for what is in `tables`.
void embedding_layer_norm_backward_cuda(const EmbeddingInputs& inputs, const void* dy, const float* mean,
                                        const float* rstd, const EmbeddingGradients& gradients, void* workspace,
                                        int64_t workspace_bytes, int device, void* stream);
int64_t embedding_layer_norm_backward_cuda_workspace(int64_t tokens, int64_t hidden);

// out [rows, H] = for each row the float32 sum of the rows of x [T, H] whose id it is; 0 where there is none and in row
// `skip` (-1: in no such row). ids int64 [T], all of them rows of out; order int64 [T] sorts them, equal ones by place.
// The same on every run, whatever the number of rows that share an id.
void sum_rows_by_id_cuda(const void* x, const int64_t* ids, const int64_t* order, int64_t tokens, int64_t hidden,
                         int64_t rows, int64_t skip, DType dtype, void* out, void* workspace, int64_t workspace_bytes,
                         int device, void* stream);
int64_t sum_rows_by_id_cuda_workspace(int64_t tokens, int64_t hidden);

// to [tokens, row_bytes] = rows `indices` of from [places, row_bytes]; 16 bytes at a time where alignment allows it.
void gather_rows_cuda(const void* from, int64_t places, const int64_t* indices, int64_t tokens, void* to,
                      int64_t row_bytes, int device, void* stream);

// to [places, row_bytes] = rows of from [tokens, row_bytes] at the places `indices`, which ascend and are distinct, and
// zeros everywhere else: one pass over `to`.
void scatter_rows_cuda(const void* from, const int64_t* indices, int64_t tokens, void* to, int64_t places,
                       int64_t row_bytes, int device, void* stream);

struct PoolingSizes {
    int64_t tokens, sequences, hidden;
};

// out float32 [B, H]. places int32 [B, H]: the row within its sequence that each maximum was first found in. scales
// float32 [B]: what vectors were multiplied by to be of length 1. The last two null: not wanted.
struct PoolingSaved {
    float* out;
    int32_t* places;
    float* scales;
};

// x [T, H] of dtype and cu_seqlens int32 [B + 1] -> one vector per sequence. mode: 0 mean, 1 max, 2 its first row.
// Sequences without rows give zeros. Sums are float32 and the same whatever batch a sequence is in.
void pool_cuda(const void* x, const int32_t* cu_seqlens, const PoolingSizes& sizes, int mode, bool normalize,
               DType dtype, const PoolingSaved& results, int device, void* stream);

// dy float32 [B, H] -> dx [T, H] of dtype. A maximum's gradient goes to the first row that it is in.
void pool_backward_cuda(const float* dy, const int32_t* cu_seqlens, const PoolingSizes& sizes, int mode, bool normalize,
                        DType dtype, const PoolingSaved& saved, void* dx, int device, void* stream);

// One tensor of an optimizer's list: contiguous, each pointer to numel elements, step to one. master may be null.
struct TensorAddresses {
    const void* grad;
    void* param;
    float* master;
    void* exp_avg;
    float* exp_avg_sq;
    const float* step;
    int64_t numel;
};

// What all tensors of a call share; of the pointers each may be null. lr_pointer goes before lr; gradients are taken
// times grad_factor; where found_inf is not 0 the call changes nothing.
struct AdamScalars {
    const float* lr_pointer;
    float lr;
    const float* grad_factor;
    const float* found_inf;
};

// Elements of a tensor that one block takes: partial sums have one place for every chunk of every tensor, in order.
int64_t optimizer_chunk();

// partials [chunks] = sums of squares of the gradients.
void square_gradients_cuda(const std::vector<TensorAddresses>& tensors, DType dtype, float* partials, int device,
                           void* stream);

// out [2] = the norm behind the partial sums, divided by *grad_scale (null: 1), and the factor that brings gradients
// down to max_norm, divided likewise.
void clip_factor_cuda(const float* partials, int64_t count, float max_norm, const float* grad_scale, float* out,
                      int device, void* stream);

// One step, in place, of tensors whose step already counts it: LAMB's where `adapt` is set (squares [chunks, 2] is its
// workspace), else Adam's. dtype: of parameters and gradients; moment: of exp_avg, float32 or bfloat16.
void adam_cuda(const std::vector<TensorAddresses>& tensors, const AdamRule& rule, const AdamScalars& scalars,
               bool adapt, float* squares, DType dtype, DType moment, int device, void* stream);

// What cross_entropy reads and writes, for R rows of V logits of one dtype; strides in elements, the last is 1.
struct CrossEntropy {
    const void* logits;  // [R, V]
    const int64_t* labels;  // [R]; an ignored row has loss 0 and gradient 0, and is not read
    const float* known;  // [R, 2], statistics of an earlier call, or null: found here
    const float* upstream;  // [R], gradient of each row's loss; null: 1
    const float* inverse_count;  // [1], another factor of the gradient; null: 1
    float* losses;  // [R], or null
    float* statistics;  // [R, 2], or null: each row's largest logit and sum of exp(x - it), 0 where it is ignored
    void* grad;  // [R, V], in the place of the logits or apart from them; null: not wanted
    int64_t rows, classes, logits_stride, grad_stride, upstream_stride, ignore_index;
    float smoothing, z_loss;  // label smoothing as PyTorch's; z_loss * lse^2 is added to the loss
    float factor;  // of the gradient
    bool skip_ones;  // leave rows alone whose upstream is 1: grad holds their gradient already
    int32_t* bad_id;  // set to 4, if it is 0, by a label outside 0 .. V - 1, whose row is then ignored
};
void cross_entropy_cuda(const CrossEntropy& arguments, DType dtype, int device, void* stream);
// inverse_count[0] = 1 / (labels that are not ignored, at least 1).
void cross_entropy_count_cuda(const int64_t* labels, int64_t rows, int64_t ignore_index, float* inverse_count,
                              int device, void* stream);
// out[0] = (sum of losses [R], in an order that depends on R alone) * inverse_count[0], or * 1 where that is null.
void cross_entropy_sum_cuda(const float* losses, int64_t rows, const float* inverse_count, float* out, int device,
                            void* stream);

}  // namespace bert_fast
