#include <algorithm>

#include "cuda/api.h"
#include "cuda/launch.h"
#include "host/checks.h"
#include "shared/embedding_row.h"

namespace bert_fast {
namespace {

constexpr int kThreads = 256;

// As many blocks as share a multiprocessor without spilling registers on any architecture.
template <typename Row>
constexpr int kBlocksPerSM = Row::kVec == 8 ? 3 : 2;

struct Arguments {
    const int64_t* input_ids;
    const int64_t* token_type_ids;
    const int64_t* position_ids;
    const void* word;
    const void* position;
    const void* type;
    const void* gamma;
    const void* beta;
    void* out;
    float* mean;
    float* rstd;
    EmbeddingSizes sizes;
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
    const int64_t stride = int64_t{gridDim.x} * kRows;
    for (int64_t token = int64_t{blockIdx.x} * kRows + threadIdx.x / LANES; token < a.sizes.tokens; token += stride) {
        BadId bad = kIdsFine;
        const int64_t word = resolve_id(a.input_ids[token], a.sizes.vocab, kBadWord, &bad);
        const int64_t position = resolve_id(a.position_ids[token], a.sizes.positions, kBadPosition, &bad);
        const int64_t type =
            a.token_type_ids == nullptr ? 0 : resolve_id(a.token_type_ids[token], a.sizes.types, kBadType, &bad);
        if (bad != kIdsFine && lane == 0) atomicCAS(a.bad_id, 0, bad);

        const int64_t hidden = a.sizes.hidden;
        Row row;
        row.source = {static_cast<const T*>(a.word) + word * hidden,
                      static_cast<const T*>(a.position) + position * hidden,
                      static_cast<const T*>(a.type) + type * hidden, static_cast<int>(hidden), lane, LANES};
        const float mean = sum_lanes<LANES>(row.read_sum()) / static_cast<float>(hidden);
        const float variance = sum_lanes<LANES>(row.squared_deviations(mean)) / static_cast<float>(hidden);
        const float rstd = 1.0f / sqrtf(variance + a.eps);
        row.write(mean, rstd, static_cast<const T*>(a.gamma), static_cast<const T*>(a.beta),
                  static_cast<T*>(a.out) + token * hidden);
        if (a.mean != nullptr && lane == 0) {
            a.mean[token] = mean;
            a.rstd[token] = rstd;
        }
    }
}

template <typename Row, typename T, int LANES>
void launch(const Arguments& a, cudaStream_t stream) {
    const int64_t blocks = (a.sizes.tokens + kThreads / LANES - 1) / (kThreads / LANES);
    const auto grid = static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX));
    embedding_layer_norm<Row, T, LANES><<<grid, kThreads, 0, stream>>>(a);
}

template <typename T, int VEC>
void launch_cached(const Arguments& a, cudaStream_t stream) {
    using Row = CachedRow<T, VEC, kCachedElements / VEC>;
    if (a.sizes.hidden <= kWarpRowLimit) return launch<Row, T, kWarpLanes>(a, stream);
    launch<Row, T, kBlockLanes>(a, stream);
}

bool all_aligned(const Arguments& a) {
    for (const void* pointer : {a.word, a.position, a.type, a.gamma, a.beta, static_cast<const void*>(a.out)}) {
        if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
    }
    return true;
}

template <typename T>
void launch_for(const Arguments& a, cudaStream_t stream) {
    constexpr int kVec = 16 / sizeof(T);
    if (a.sizes.hidden > kBlockRowLimit) return launch<StreamedRow<T, 1>, T, kBlockLanes>(a, stream);
    if (a.sizes.hidden % kVec == 0 && all_aligned(a)) return launch_cached<T, kVec>(a, stream);
    launch_cached<T, 1>(a, stream);
}

}  // namespace

void embedding_layer_norm_cuda(const int64_t* input_ids, const int64_t* token_type_ids, const int64_t* position_ids,
                               const void* word, const void* position, const void* type, const void* gamma,
                               const void* beta, void* out, float* mean, float* rstd, const EmbeddingSizes& sizes,
                               float eps, DType dtype, int32_t* bad_id, int device, void* stream) {
    constexpr const char* name = "embedding_layer_norm_cuda";
    require_at_least("tokens", sizes.tokens, 0);
    require_at_least("hidden", sizes.hidden, 1);
    if (sizes.hidden > INT32_MAX / 2) refuse("hidden must be below 2^30, got " + std::to_string(sizes.hidden));
    require_at_least("vocab", sizes.vocab, 1);
    require_at_least("positions", sizes.positions, 1);
    require_at_least("types", sizes.types, 1);
    require_at_least("device", device, 0);
    if (!(eps >= 0)) refuse("eps must be at least 0, got " + std::to_string(eps));
    if ((mean == nullptr) != (rstd == nullptr)) refuse("mean and rstd must both be given or both be null");
    if (sizes.tokens == 0) return;
    require_pointer("input_ids", input_ids, true);
    require_pointer("position_ids", position_ids, true);
    for (const void* table : {word, position, type, gamma, beta, static_cast<const void*>(out)}) {
        require_pointer("word, position, type, gamma, beta and out", table, true);
    }
    require_pointer("bad_id", bad_id, true);
    const DeviceGuard guard(device, name);
    const Arguments a{input_ids, token_type_ids, position_ids, word, position, type, gamma, beta, out, mean, rstd,
                      sizes,     eps,            bad_id};
    const auto on = static_cast<cudaStream_t>(stream);
    if (dtype == DType::kFloat32) launch_for<float>(a, on);
    if (dtype == DType::kFloat16) launch_for<Half>(a, on);
    if (dtype == DType::kBFloat16) launch_for<BFloat16>(a, on);
    check(cudaGetLastError(), name);
}

}  // namespace bert_fast
