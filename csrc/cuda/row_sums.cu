// Sums of rows that share an id. The rows, in the order of their ids, are cut into tiles: what lies within one tile is
// summed and written at once. An id that crosses a boundary leaves a partial sum in each of its tiles, and a second
// launch adds those up, in parallel: an id that has most of the rows costs no more than any other.
#include <algorithm>

#include "cuda/api.h"
#include "cuda/arguments.h"
#include "cuda/launch.h"
#include "shared/packs.h"

namespace bert_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64;   // rows
constexpr int kBatch = 4;   // rows that are loaded before the first of them is added
constexpr int kJoinColumns = 32, kJoinLanes = kThreads / kJoinColumns;

struct Arguments {
    const void* x;
    const int64_t* ids;
    const int64_t* order;
    int64_t tokens, hidden, skip;
    void* out;
    float* partials;  // [tiles, 2, H]: of the id that came into the tile, and of the one that goes on after it

    __device__ int64_t id_at(int64_t place) const { return ids[order[place]]; }
    __device__ float* coming(int64_t tile) const { return partials + 2 * tile * hidden; }
    __device__ float* going(int64_t tile) const { return partials + (2 * tile + 1) * hidden; }
};

template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads, 2) sum_tiles(Arguments a) {
    __shared__ int64_t rows[kTile], ids[kTile];
    const int64_t begin = int64_t{blockIdx.x} * kTile, end = min(begin + kTile, a.tokens);
    const int count = static_cast<int>(end - begin);
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        rows[i] = a.order[begin + i];
        ids[i] = a.ids[rows[i]];
    }
    __syncthreads();
    const bool came = begin > 0 && a.id_at(begin - 1) == ids[0];
    const bool goes_on = end < a.tokens && a.id_at(end) == ids[count - 1];
    const int64_t stride = int64_t{gridDim.y} * blockDim.x * VEC;
    for (int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * VEC; column < a.hidden; column += stride) {
        const T* const x = static_cast<const T*>(a.x) + column;
        float sum[VEC] = {};
        bool from_before = came;
        for (int first = 0; first < count; first += kBatch) {
            float batch[kBatch][VEC];
            BERT_FAST_UNROLL
            for (int j = 0; j < kBatch; ++j) {
                if (first + j < count) load_floats(x + rows[first + j] * a.hidden, batch[j]);
            }
            BERT_FAST_UNROLL
            for (int j = 0; j < kBatch; ++j) {
                const int i = first + j;
                if (i >= count) continue;
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) sum[k] += batch[j][k];
                const bool last = i == count - 1;
                if (!last && ids[i + 1] == ids[i]) continue;
                if (from_before) {
                    store_sums(a.coming(blockIdx.x) + column, sum);
                } else if (last && goes_on) {
                    store_sums(a.going(blockIdx.x) + column, sum);
                } else if (ids[i] != a.skip) {
                    store_floats(static_cast<T*>(a.out) + ids[i] * a.hidden + column, sum);
                }
                from_before = false;
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) sum[k] = 0;
            }
        }
    }
}

// A block for each tile in which an id begins that goes on in the next.
template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads) join_tiles(Arguments a) {
    __shared__ float sums[kJoinLanes][kJoinColumns][VEC];
    const int64_t begin = int64_t{blockIdx.x} * kTile, end = begin + kTile;
    if (end >= a.tokens) return;
    const int64_t id = a.id_at(end - 1);
    if (a.id_at(end) != id || id == a.skip) return;
    if (begin > 0 && a.id_at(begin - 1) == id) return;  // began earlier, and fills this tile
    const int x = threadIdx.x % kJoinColumns, lane = threadIdx.x / kJoinColumns;
    const int64_t stride = int64_t{gridDim.y} * kJoinColumns * VEC;
    for (int64_t chunk = int64_t{blockIdx.y} * kJoinColumns * VEC; chunk < a.hidden; chunk += stride) {
        const int64_t column = chunk + x * VEC;
        float sum[VEC] = {};
        if (column < a.hidden) {
            if (lane == 0) load_floats(a.going(blockIdx.x) + column, sum);
            for (int64_t tile = blockIdx.x + 1 + lane; tile * kTile < a.tokens; tile += kJoinLanes) {
                if (a.id_at(tile * kTile) != id) break;
                float part[VEC];
                load_floats(a.coming(tile) + column, part);
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) sum[k] += part[k];
            }
        }
        BERT_FAST_UNROLL
        for (int k = 0; k < VEC; ++k) sums[lane][x][k] = sum[k];
        __syncthreads();
        if (lane == 0 && column < a.hidden) {
            for (int other = 1; other < kJoinLanes; ++other) {
                BERT_FAST_UNROLL
                for (int k = 0; k < VEC; ++k) sum[k] += sums[other][x][k];
            }
            store_floats(static_cast<T*>(a.out) + id * a.hidden + column, sum);
        }
        __syncthreads();  // sums are used again
    }
}

unsigned grid_rows(int64_t columns, int64_t at_once) {
    return static_cast<unsigned>(std::min<int64_t>((columns + at_once - 1) / at_once, 65535));
}

int64_t tiles_of(int64_t tokens) { return (tokens + kTile - 1) / kTile; }

template <typename T, int VEC, int JOIN_VEC>
void launch(const Arguments& a, cudaStream_t stream, const char* name) {
    const auto tiles = static_cast<unsigned>(tiles_of(a.tokens));
    const int64_t threads = ((a.hidden + VEC - 1) / VEC + 31) / 32 * 32;
    const auto block = static_cast<unsigned>(std::min<int64_t>(threads, kThreads));
    sum_tiles<T, VEC><<<dim3(tiles, grid_rows(a.hidden, block * VEC)), block, 0, stream>>>(a);
    check(cudaGetLastError(), name);
    if (tiles == 1) return;
    const unsigned chunks = grid_rows(a.hidden, kJoinColumns * JOIN_VEC);
    join_tiles<T, JOIN_VEC><<<dim3(tiles - 1, chunks), kThreads, 0, stream>>>(a);
    check(cudaGetLastError(), name);
}

template <typename T>
void launch_for(const Arguments& a, cudaStream_t stream, const char* name) {
    constexpr int kVec = 16 / sizeof(T);
    if (a.hidden % kVec == 0 && all_aligned({a.x, a.out, a.partials})) return launch<T, kVec, 4>(a, stream, name);
    launch<T, 1, 1>(a, stream, name);
}

}  // namespace

int64_t sum_rows_by_id_cuda_workspace(int64_t tokens, int64_t hidden) {
    require_at_least("tokens", tokens, 0);
    require_width(hidden);
    if (tiles_of(tokens) > INT32_MAX) refuse("tokens must be below 2^37, got " + std::to_string(tokens));
    return 2 * tiles_of(tokens) * hidden * static_cast<int64_t>(sizeof(float));
}

void sum_rows_by_id_cuda(const void* x, const int64_t* ids, const int64_t* order, int64_t tokens, int64_t hidden,
                         int64_t rows, int64_t skip, DType dtype, void* out, void* workspace, int64_t workspace_bytes,
                         int device, void* stream) {
    constexpr const char* name = "sum_rows_by_id_cuda";
    const int64_t needed = sum_rows_by_id_cuda_workspace(tokens, hidden);
    require_at_least("rows", rows, 1);
    require_at_least("device", device, 0);
    require_pointer("out", out, true);
    for (const void* pointer : {x, static_cast<const void*>(ids), static_cast<const void*>(order)}) {
        require_pointer("x, ids and order", pointer, tokens > 0);
    }
    require_pointer("workspace", workspace, tokens > 0);
    require_at_least("workspace_bytes", workspace_bytes, needed);
    const DeviceGuard guard(device, name);
    const auto on = static_cast<cudaStream_t>(stream);
    const auto bytes = static_cast<size_t>(rows * hidden) * (dtype == DType::kFloat32 ? 4 : 2);
    check(cudaMemsetAsync(out, 0, bytes, on), name);
    if (tokens == 0) return;
    const Arguments a{x, ids, order, tokens, hidden, skip, out, static_cast<float*>(workspace)};
    if (dtype == DType::kFloat32) launch_for<float>(a, on, name);
    if (dtype == DType::kFloat16) launch_for<Half>(a, on, name);
    if (dtype == DType::kBFloat16) launch_for<BFloat16>(a, on, name);
}

}  // namespace bert_fast
