#include <algorithm>

#include "cuda/api.h"
#include "cuda/arguments.h"
#include "cuda/launch.h"
#include "shared/embedding_row.h"

namespace bert_fast {
namespace {

constexpr int kThreads = 256;

// As many blocks as share a multiprocessor without spilling registers on any architecture.
template <typename Row>
constexpr int kBlocksPerSM = Row::kVec == 8 ? 3 : 2;

struct Arguments {
    EmbeddingInputs in;
    Dropout dropout;
    const void* beta;
    void* out;
    float* mean;
    float* rstd;
    float eps;
    int32_t* bad_id;
};

// The sum over the LANES threads that share a row, in an order that depends on nothing but LANES.
template <int LANES>
__device__ float sum_lanes(float x) {
    for (int delta = 16; delta > 0; delta /= 2) x += __shfl_xor_sync(0xffffffff, x, delta);
    if constexpr (LANES > 32) {
        __shared__ float warp_sums[LANES / 32];
        __syncthreads();  // the previous sum may still be read
        if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
        __syncthreads();
        x = 0;
        for (int warp = 0; warp < LANES / 32; ++warp) x += warp_sums[warp];
    }
    return x;
}

template <typename Row, typename T, int LANES>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM<Row>) embedding_layer_norm(Arguments a) {
    constexpr int kRows = kThreads / LANES;
    const int lane = threadIdx.x % LANES;
    const int64_t hidden = a.in.hidden, stride = int64_t{gridDim.x} * kRows;
    const DropoutMask dropout = a.dropout.mask();
    for (int64_t token = int64_t{blockIdx.x} * kRows + threadIdx.x / LANES; token < a.in.tokens; token += stride) {
        const TokenRows rows = token_rows(a.in.input_ids, a.in.token_type_ids, a.in.position_ids, token, a.in.vocab,
                                          a.in.positions, a.in.types);
        if (rows.bad != kIdsFine && lane == 0) atomicCAS(a.bad_id, 0, static_cast<int>(rows.bad));
        Row row;
        row.source = {static_cast<const T*>(a.in.word) + rows.word * hidden,
                      static_cast<const T*>(a.in.position) + rows.position * hidden,
                      static_cast<const T*>(a.in.type) + rows.type * hidden, static_cast<int>(hidden), lane, LANES};
        const float mean = sum_lanes<LANES>(row.read_sum()) / static_cast<float>(hidden);
        const float variance = sum_lanes<LANES>(row.squared_deviations(mean)) / static_cast<float>(hidden);
        const float rstd = 1.0f / sqrtf(variance + a.eps);
        const int64_t first = token * hidden;
        row.write(RowTarget<T>{static_cast<const T*>(a.in.gamma), static_cast<const T*>(a.beta),
                               static_cast<T*>(a.out) + first, dropout, first, mean, rstd});
        if (a.mean != nullptr && lane == 0) {
            a.mean[token] = mean;
            a.rstd[token] = rstd;
        }
    }
}

template <typename Row, typename T, int LANES>
void launch(const Arguments& a, cudaStream_t stream) {
    const int64_t blocks = (a.in.tokens + kThreads / LANES - 1) / (kThreads / LANES);
    const auto grid = static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX));
    embedding_layer_norm<Row, T, LANES><<<grid, kThreads, 0, stream>>>(a);
}

template <typename Row, typename T>
void launch_shared(const Arguments& a, cudaStream_t stream) {
    if (a.in.hidden <= kWarpRowLimit) return launch<Row, T, kWarpLanes>(a, stream);
    launch<Row, T, kBlockLanes>(a, stream);
}

// Rows that no vector divides are rare: read from cache again they are slower, but kept in registers they would be most
// of what there is to compile.
template <typename T>
void launch_for(const Arguments& a, cudaStream_t stream) {
    constexpr int kVec = 16 / sizeof(T);
    const bool aligned = all_aligned({a.in.word, a.in.position, a.in.type, a.in.gamma, a.beta, a.out});
    const bool cached = aligned && a.in.hidden % kVec == 0 && a.in.hidden <= kBlockRowLimit;
    if (cached) return launch_shared<CachedRow<T, kVec, kCachedElements / kVec>, T>(a, stream);
    launch_shared<StreamedRow<T, 1>, T>(a, stream);
}

}  // namespace

void embedding_layer_norm_cuda(const EmbeddingInputs& inputs, const void* beta, float eps, void* out, float* mean,
                               float* rstd, int32_t* bad_id, int device, void* stream) {
    constexpr const char* name = "embedding_layer_norm_cuda";
    require_embedding(inputs);
    require_at_least("device", device, 0);
    if (!(eps >= 0)) refuse("eps must be at least 0, got " + std::to_string(eps));
    if ((mean == nullptr) != (rstd == nullptr)) refuse("mean and rstd must both be given or both be null");
    if (inputs.tokens == 0) return;
    require_pointer("beta", beta, true);
    require_pointer("out", out, true);
    require_pointer("bad_id", bad_id, true);
    const DeviceGuard guard(device, name);
    const Arguments a{inputs, dropout_of(inputs.dropout), beta, out, mean, rstd, eps, bad_id};
    const auto on = static_cast<cudaStream_t>(stream);
    if (inputs.dtype == DType::kFloat32) launch_for<float>(a, on);
    if (inputs.dtype == DType::kFloat16) launch_for<Half>(a, on);
    if (inputs.dtype == DType::kBFloat16) launch_for<BFloat16>(a, on);
    check(cudaGetLastError(), name);
}

}  // namespace bert_fast
