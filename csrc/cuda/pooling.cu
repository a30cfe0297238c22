// One vector per sequence, a block for each: a warp's lanes share its columns, the warps its rows.
#include <cmath>

#include "cuda/api.h"
#include "cuda/arguments.h"
#include "cuda/launch.h"
#include "shared/packs.h"
#include "shared/pooling.h"

namespace bert_fast {
namespace {

constexpr int kColumns = 32, kWarps = 8, kThreads = kColumns * kWarps;
constexpr int kBatch = 4;  // rows that are loaded before the first of them is added

struct Arguments {
    const void* x;
    const int32_t* cu_seqlens;
    PoolingSizes sizes;
    Pooling mode;
    bool normalize;
};

__device__ float sum_warp(float x) {
    for (int delta = 16; delta > 0; delta /= 2) x += __shfl_xor_sync(0xffffffff, x, delta);
    return x;
}

// The sum over a warp's rows of VEC columns; warp w has the rows begin + w, begin + w + kWarps, ...
template <typename T, int VEC>
__device__ void add_rows(const T* x, int64_t hidden, RowRange rows, int warp, float (&sum)[VEC]) {
    for (int64_t first = rows.begin + warp; first < rows.end; first += kBatch * kWarps) {
        float batch[kBatch][VEC];
        BERT_FAST_UNROLL
        for (int j = 0; j < kBatch; ++j) {
            if (first + j * kWarps < rows.end) load_floats(x + (first + j * kWarps) * hidden, batch[j]);
        }
        BERT_FAST_UNROLL
        for (int j = 0; j < kBatch; ++j) {
            if (first + j * kWarps >= rows.end) continue;
            BERT_FAST_UNROLL
            for (int k = 0; k < VEC; ++k) sum[k] += batch[j][k];
        }
    }
}

template <typename T, int VEC>
__device__ void find_largest(const T* x, int64_t hidden, RowRange rows, int warp, Largest (&largest)[VEC]) {
    for (int64_t row = rows.begin + warp; row < rows.end; row += kWarps) {
        float values[VEC];
        load_floats(x + row * hidden, values);
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) largest[k].take(values[k], static_cast<int>(row - rows.begin));
    }
}

template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads, 2) pool_sequences(Arguments a, float* out, int32_t* places, float* scales) {
    __shared__ float values[kWarps][kColumns * VEC];
    __shared__ int at[kWarps][kColumns * VEC];
    const int lane = threadIdx.x % kColumns, warp = threadIdx.x / kColumns;
    const int64_t hidden = a.sizes.hidden, sequence = blockIdx.x;
    const RowRange rows = rows_of(a.cu_seqlens, sequence, a.sizes.tokens);
    const auto count = static_cast<float>(rows.end > rows.begin ? rows.end - rows.begin : 1);
    float squares = 0;
    for (int64_t chunk = 0; chunk < hidden; chunk += kColumns * VEC) {
        const int64_t column = chunk + lane * VEC;
        const T* const x = static_cast<const T*>(a.x) + column;
        float result[VEC] = {};
        int32_t place[VEC] = {};
        if (column < hidden && a.mode == Pooling::kMax) {
            Largest largest[VEC];
            BERT_FAST_UNROLL
            for (int k = 0; k < VEC; ++k) largest[k] = {0.0f, -1};
            find_largest(x, hidden, rows, warp, largest);
            BERT_FAST_UNROLL
            for (int k = 0; k < VEC; ++k) {
                values[warp][lane * VEC + k] = result[k] = largest[k].value;
                at[warp][lane * VEC + k] = place[k] = largest[k].place;
            }
        } else if (column < hidden && a.mode == Pooling::kMean) {
            add_rows(x, hidden, rows, warp, result);
            BERT_FAST_UNROLL
            for (int k = 0; k < VEC; ++k) values[warp][lane * VEC + k] = result[k];
        } else if (column < hidden && rows.begin < rows.end) {
            load_floats(x + rows.begin * hidden, result);
        }
        __syncthreads();
        if (warp == 0 && column < hidden) {
            BERT_FAST_UNROLL
            for (int k = 0; k < VEC; ++k) {
                const int mine = lane * VEC + k;
                if (a.mode == Pooling::kMean) {
                    for (int other = 1; other < kWarps; ++other) result[k] += values[other][mine];
                    result[k] /= count;
                }
                if (a.mode == Pooling::kMax) {
                    Largest largest{result[k], place[k]};
                    for (int other = 1; other < kWarps; ++other) largest.take(values[other][mine], at[other][mine]);
                    result[k] = largest.value;
                    place[k] = largest.place;
                }
                squares += result[k] * result[k];
            }
            store_sums(out + sequence * hidden + column, result);
            if (places != nullptr) {
                for (int k = 0; k < VEC; ++k) places[sequence * hidden + column + k] = place[k];
            }
        }
        __syncthreads();  // the shared sums are used again
    }
    if (warp != 0 || !a.normalize) return;
    const float norm = sqrtf(sum_warp(squares));
    const float scale = 1.0f / (norm < kSmallestNorm ? kSmallestNorm : norm);
    for (int64_t chunk = lane * VEC; chunk < hidden; chunk += kColumns * VEC) {
        for (int k = 0; k < VEC; ++k) out[sequence * hidden + chunk + k] *= scale;  // what this very thread wrote
    }
    if (scales != nullptr && lane == 0) scales[sequence] = scale;
}

// The gradient of all rows of a sequence; of the rows before the first and behind the last sequence, were there any, 0.
template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads)
    spread_gradient(Arguments a, const float* dy, const float* y, const int32_t* places, const float* scales, T* dx) {
    __shared__ float warp_sums[kWarps];
    const int lane = threadIdx.x % kColumns, warp = threadIdx.x / kColumns;
    const int64_t hidden = a.sizes.hidden, sequence = blockIdx.x, base = sequence * hidden;
    const RowRange rows = rows_of(a.cu_seqlens, sequence, a.sizes.tokens);
    const int64_t from = sequence == 0 ? 0 : rows.begin;
    const int64_t to = sequence == a.sizes.sequences - 1 ? a.sizes.tokens : rows.end;
    float scale = 1, dot = 0;
    if (a.normalize) {
        for (int64_t i = threadIdx.x; i < hidden; i += kThreads) dot += y[base + i] * dy[base + i];
        dot = sum_warp(dot);
        if (lane == 0) warp_sums[warp] = dot;
        __syncthreads();
        dot = 0;
        for (int other = 0; other < kWarps; ++other) dot += warp_sums[other];
        scale = scales[sequence];
        if (scale >= 1.0f / kSmallestNorm) dot = 0;  // divided by a constant
    }
    const float share = a.mode == Pooling::kMean ? 1.0f / static_cast<float>(rows.end - rows.begin) : 1.0f;
    for (int64_t column = lane * VEC; column < hidden; column += kColumns * VEC) {
        float gradient[VEC];
        int32_t place[VEC];
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) {
            const int64_t at = base + column + k;
            gradient[k] = a.normalize ? (dy[at] - y[at] * dot) * scale : dy[at];
            if (a.mode == Pooling::kMean) gradient[k] *= share;
            place[k] = a.mode == Pooling::kMax ? places[at] : 0;
        }
        for (int64_t row = from + warp; row < to; row += kWarps) {
            const bool inside = row >= rows.begin && row < rows.end;
            float d[VEC];
            BERT_FAST_UNROLL
            for (int k = 0; k < VEC; ++k) {
                d[k] = inside && (a.mode == Pooling::kMean || place[k] == row - rows.begin) ? gradient[k] : 0.0f;
            }
            store_floats(dx + row * hidden + column, d);
        }
    }
}

void require_sizes(const PoolingSizes& sizes, int mode, int device) {
    require_at_least("tokens", sizes.tokens, 0);
    require_at_least("sequences", sizes.sequences, 0);
    if (sizes.sequences > INT32_MAX) refuse("sequences must be below 2^31, got " + std::to_string(sizes.sequences));
    require_width(sizes.hidden);
    require_at_least("device", device, 0);
    if (mode < 0 || mode > 2) refuse("mode must be 0 (mean), 1 (max) or 2 (first), got " + std::to_string(mode));
}

template <typename T>
void launch_forward(const Arguments& a, float* out, int32_t* places, float* scales, cudaStream_t stream) {
    constexpr int kVec = 16 / sizeof(T);
    const auto grid = static_cast<unsigned>(a.sizes.sequences);
    if (a.sizes.hidden % kVec == 0 && all_aligned({a.x, out})) {
        pool_sequences<T, kVec><<<grid, kThreads, 0, stream>>>(a, out, places, scales);
    } else {
        pool_sequences<T, 1><<<grid, kThreads, 0, stream>>>(a, out, places, scales);
    }
}

template <typename T>
void launch_backward(const Arguments& a, const PoolingSaved& saved, const float* dy, void* dx, cudaStream_t stream) {
    constexpr int kVec = 16 / sizeof(T);
    const auto grid = static_cast<unsigned>(a.sizes.sequences);
    auto* const target = static_cast<T*>(dx);
    if (a.sizes.hidden % kVec == 0 && all_aligned({dx})) {
        spread_gradient<T, kVec><<<grid, kThreads, 0, stream>>>(a, dy, saved.out, saved.places, saved.scales, target);
    } else {
        spread_gradient<T, 1><<<grid, kThreads, 0, stream>>>(a, dy, saved.out, saved.places, saved.scales, target);
    }
}

}  // namespace

void pool_cuda(const void* x, const int32_t* cu_seqlens, const PoolingSizes& sizes, int mode, bool normalize,
               DType dtype, const PoolingSaved& results, int device, void* stream) {
    constexpr const char* name = "pool_cuda";
    require_sizes(sizes, mode, device);
    if (sizes.sequences == 0) return;
    require_pointer("x", x, sizes.tokens > 0);
    require_pointer("cu_seqlens", cu_seqlens, true);
    require_pointer("out", results.out, true);
    const DeviceGuard guard(device, name);
    const Arguments a{x, cu_seqlens, sizes, static_cast<Pooling>(mode), normalize};
    const auto on = static_cast<cudaStream_t>(stream);
    const auto& [out, places, scales] = results;
    if (dtype == DType::kFloat32) launch_forward<float>(a, out, places, scales, on);
    if (dtype == DType::kFloat16) launch_forward<Half>(a, out, places, scales, on);
    if (dtype == DType::kBFloat16) launch_forward<BFloat16>(a, out, places, scales, on);
    check(cudaGetLastError(), name);
}

void pool_backward_cuda(const float* dy, const int32_t* cu_seqlens, const PoolingSizes& sizes, int mode, bool normalize,
                        DType dtype, const PoolingSaved& saved, void* dx, int device, void* stream) {
    constexpr const char* name = "pool_backward_cuda";
    require_sizes(sizes, mode, device);
    if (sizes.tokens == 0) return;
    require_pointer("dx", dx, true);
    const DeviceGuard guard(device, name);
    const auto on = static_cast<cudaStream_t>(stream);
    if (sizes.sequences == 0) {
        const auto bytes = static_cast<size_t>(sizes.tokens * sizes.hidden) * (dtype == DType::kFloat32 ? 4 : 2);
        check(cudaMemsetAsync(dx, 0, bytes, on), name);
        return;
    }
    require_pointer("dy", dy, true);
    require_pointer("cu_seqlens", cu_seqlens, true);
    require_pointer("out, where vectors are normalised,", saved.out, normalize);
    require_pointer("scales, where vectors are normalised,", saved.scales, normalize);
    require_pointer("places, for the mode max,", saved.places, static_cast<Pooling>(mode) == Pooling::kMax);
    const Arguments a{nullptr, cu_seqlens, sizes, static_cast<Pooling>(mode), normalize};
    if (dtype == DType::kFloat32) launch_backward<float>(a, saved, dy, dx, on);
    if (dtype == DType::kFloat16) launch_backward<Half>(a, saved, dy, dx, on);
    if (dtype == DType::kBFloat16) launch_backward<BFloat16>(a, saved, dy, dx, on);
    check(cudaGetLastError(), name);
}

}  // namespace bert_fast
