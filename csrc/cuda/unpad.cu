#include "shared/unpad.h"

#include <algorithm>

#include "cuda/api.h"
#include "cuda/launch.h"
#include "host/checks.h"

namespace bert_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;
constexpr int64_t kChunk = int64_t{kThreads} * kMaskBytes;
constexpr int64_t kOneBlockChunk = int64_t{kScanThreads} * kMaskBytes;
constexpr int64_t kOneBlockPositions = 2 * kOneBlockChunk;  // up to here one block beats four launches
static_assert(kOneBlockChunk <= 65536, "a position in its chunk is kept as uint16");

// The sum over earlier threads of the block; `total` is the block's. All threads must call it.
template <int THREADS, typename N>
__device__ N exclusive_scan(N value, N* warp_sums, N* total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    N inclusive = value;
    for (int delta = 1; delta < 32; delta *= 2) {
        const N lower = __shfl_up_sync(0xffffffff, inclusive, delta);
        if (lane >= delta) inclusive += lower;
    }
    if (lane == 31) warp_sums[warp] = inclusive;
    __syncthreads();
    if (warp == 0) {
        N sum = lane < THREADS / 32 ? warp_sums[lane] : 0;
        for (int delta = 1; delta < 32; delta *= 2) {
            const N lower = __shfl_up_sync(0xffffffff, sum, delta);
            if (lane >= delta) sum += lower;
        }
        if (lane < THREADS / 32) warp_sums[lane] = sum;
    }
    __syncthreads();
    const N result = inclusive - value + (warp == 0 ? 0 : warp_sums[warp - 1]);
    *total = warp_sums[THREADS / 32 - 1];
    __syncthreads();  // warp_sums may be used again
    return result;
}

struct Unpad {
    const uint8_t* mask;
    bool aligned;
    int64_t batch, seqlen;
    int64_t* indices;
    int32_t* cu_seqlens;
    int64_t* stats;
    Tiling tiling;
};

// Packs the positions begin .. end after `before` visible ones; returns how many are visible up to `end`.
template <int THREADS>
__device__ int64_t pack_range(const Unpad& u, int64_t begin, int64_t end, int64_t before) {
    __shared__ uint16_t packed[THREADS * kMaskBytes];
    __shared__ int warp_sums[THREADS / 32];
    for (int64_t chunk = begin; chunk < end; chunk += THREADS * kMaskBytes) {
        const int64_t first = chunk + threadIdx.x * kMaskBytes;
        const uint32_t bits = visible_bits(u.mask, first, u.tiling.positions, u.aligned);
        int visible;
        const int rank = exclusive_scan<THREADS>(count_bits(bits), warp_sums, &visible);
        if (first < u.tiling.positions) {
            write_row_starts(bits, first, before + rank, u.tiling.positions, u.seqlen, u.cu_seqlens);
        }
        write_visible(bits, threadIdx.x, rank, packed);
        __syncthreads();
        for (int i = threadIdx.x; i < visible; i += THREADS) u.indices[before + i] = chunk + packed[i];
        __syncthreads();
        before += visible;
    }
    return before;
}

// The longest of the rows begin, begin + stride, ... of all threads of the block, in thread 0.
template <int THREADS>
__device__ int longest_row(const int32_t* cu_seqlens, int64_t batch, int64_t begin, int64_t stride) {
    __shared__ int warp_longest[THREADS / 32];
    int longest = 0;
    for (int64_t row = begin; row < batch; row += stride) longest = max(longest, cu_seqlens[row + 1] - cu_seqlens[row]);
    for (int delta = 16; delta > 0; delta /= 2) longest = max(longest, __shfl_xor_sync(0xffffffff, longest, delta));
    if (threadIdx.x % 32 == 0) warp_longest[threadIdx.x / 32] = longest;
    __syncthreads();
    for (int warp = 0; warp < THREADS / 32 && threadIdx.x == 0; ++warp) longest = max(longest, warp_longest[warp]);
    return longest;
}

__global__ void __launch_bounds__(kScanThreads) unpad_in_one_block(Unpad u) {
    const int64_t total = pack_range<kScanThreads>(u, 0, u.tiling.positions, 0);
    if (threadIdx.x == 0) u.cu_seqlens[u.batch] = clamp_to_int32(total);
    __syncthreads();
    const int longest = longest_row<kScanThreads>(u.cu_seqlens, u.batch, threadIdx.x, kScanThreads);
    if (threadIdx.x == 0) {
        u.stats[0] = total;
        u.stats[1] = longest;
    }
}

__global__ void __launch_bounds__(kThreads) count_tiles(Unpad u, int64_t* counts) {
    __shared__ int64_t warp_sums[kThreads / 32];
    const int64_t begin = blockIdx.x * u.tiling.tile, end = begin + u.tiling.tile;
    int64_t count = 0, total;
    for (int64_t chunk = begin; chunk < end; chunk += kChunk) {
        count += count_bits(visible_bits(u.mask, chunk + threadIdx.x * kMaskBytes, u.tiling.positions, u.aligned));
    }
    exclusive_scan<kThreads>(count, warp_sums, &total);
    if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// One block: counts of tiles become the tiles' offsets.
__global__ void __launch_bounds__(kScanThreads) scan_tiles(Unpad u, int64_t* counts) {
    __shared__ int64_t warp_sums[kScanThreads / 32];
    int64_t before = 0;
    for (int64_t base = 0; base < u.tiling.tiles; base += kScanThreads) {
        const int64_t tile = base + threadIdx.x;
        const int64_t count = tile < u.tiling.tiles ? counts[tile] : 0;
        int64_t total;
        const int64_t offset = exclusive_scan<kScanThreads>(count, warp_sums, &total);
        if (tile < u.tiling.tiles) counts[tile] = before + offset;
        before += total;
    }
    if (threadIdx.x == 0) {
        u.cu_seqlens[u.batch] = clamp_to_int32(before);
        u.stats[0] = before;
        u.stats[1] = 0;
    }
}

__global__ void __launch_bounds__(kThreads) pack_tiles(Unpad u, const int64_t* offsets) {
    const int64_t begin = blockIdx.x * u.tiling.tile;
    pack_range<kThreads>(u, begin, min(begin + u.tiling.tile, u.tiling.positions), offsets[blockIdx.x]);
}

__global__ void __launch_bounds__(kThreads) find_longest(Unpad u) {
    const int64_t begin = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const int longest = longest_row<kThreads>(u.cu_seqlens, u.batch, begin, int64_t{gridDim.x} * kThreads);
    // A maximum is the same in any order, so the atomic leaves the result deterministic.
    if (threadIdx.x == 0) atomicMax(reinterpret_cast<long long*>(u.stats + 1), static_cast<long long>(longest));
}

}  // namespace

int64_t unpad_cuda_workspace(int64_t batch, int64_t seqlen) {
    if (checked_area(batch, seqlen) <= kOneBlockPositions) return 0;
    return make_tiling(batch, seqlen, kChunk).tiles * static_cast<int64_t>(sizeof(int64_t));
}

void unpad_cuda(const uint8_t* mask, int64_t batch, int64_t seqlen, int64_t* indices, int32_t* cu_seqlens,
                int64_t* stats, void* workspace, int64_t workspace_bytes, int device, void* stream) {
    constexpr const char* name = "unpad_cuda";
    const int64_t needed = unpad_cuda_workspace(batch, seqlen);
    const Tiling tiling = make_tiling(batch, seqlen, kChunk);
    require_pointer("mask", mask, tiling.positions > 0);
    require_pointer("indices", indices, tiling.positions > 0);
    require_pointer("cu_seqlens", cu_seqlens, true);
    require_pointer("stats", stats, true);
    require_pointer("workspace", workspace, needed > 0);
    require_at_least("workspace_bytes", workspace_bytes, needed);
    require_at_least("device", device, 0);
    const DeviceGuard guard(device, name);
    const auto on = static_cast<cudaStream_t>(stream);
    if (tiling.positions == 0) {
        check(cudaMemsetAsync(cu_seqlens, 0, static_cast<size_t>(batch + 1) * sizeof(int32_t), on), name);
        check(cudaMemsetAsync(stats, 0, 2 * sizeof(int64_t), on), name);
        return;
    }
    const bool aligned = reinterpret_cast<uintptr_t>(mask) % kMaskBytes == 0;
    const Unpad u{mask, aligned, batch, seqlen, indices, cu_seqlens, stats, tiling};
    if (tiling.positions <= kOneBlockPositions) {
        unpad_in_one_block<<<1, kScanThreads, 0, on>>>(u);
        check(cudaGetLastError(), name);
        return;
    }
    auto* counts = static_cast<int64_t*>(workspace);
    const auto tiles = static_cast<unsigned>(tiling.tiles);
    count_tiles<<<tiles, kThreads, 0, on>>>(u, counts);
    check(cudaGetLastError(), name);
    scan_tiles<<<1, kScanThreads, 0, on>>>(u, counts);
    check(cudaGetLastError(), name);
    pack_tiles<<<tiles, kThreads, 0, on>>>(u, counts);
    check(cudaGetLastError(), name);
    const auto row_blocks = static_cast<unsigned>(std::min<int64_t>((batch + kThreads - 1) / kThreads, 1024));
    find_longest<<<row_blocks, kThreads, 0, on>>>(u);
    check(cudaGetLastError(), name);
}

}  // namespace bert_fast
