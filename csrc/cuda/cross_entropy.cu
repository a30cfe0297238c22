#include "cuda/api.h"
#include "cuda/launch.h"
#include "host/checks.h"
#include "shared/cross_entropy_row.h"

namespace bert_fast {
namespace {

constexpr int kSmallBlock = 128;
constexpr int kSumThreads = 1024;

template <int LANES>
constexpr int kThreads = LANES < kSmallBlock ? kSmallBlock : LANES;

// 64 registers a thread: 32 of them hold the row, and two rows of 64 KiB share a multiprocessor, so that one is read
// while the other is worked on.
template <int LANES>
constexpr int kBlocksPerSM = 1024 / kThreads<LANES>;

// The sums over the LANES threads that share a row, in an order that depends on nothing but LANES; a barrier for them.
template <int LANES>
__device__ RowSums reduce_lanes(RowSums sums) {
    const auto over_warp = [&sums] {
        for (int delta = 16; delta > 0; delta /= 2) {
            RowSums other;
            other.max = __shfl_xor_sync(0xffffffff, sums.max, delta);
            other.sum = __shfl_xor_sync(0xffffffff, sums.sum, delta);
            other.total = __shfl_xor_sync(0xffffffff, sums.total, delta);
            sums.merge(other);
        }
    };
    over_warp();
    if constexpr (LANES > 32) {
        __shared__ RowSums warps[32];
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sums;
        __syncthreads();
        const int warp = threadIdx.x % 32;
        sums = warp < LANES / 32 ? warps[warp] : RowSums{};
        over_warp();
    }
    __syncwarp();
    // A merge rounds differently with its sides exchanged: all lanes take the same one's.
    return {__shfl_sync(0xffffffff, sums.max, 0), __shfl_sync(0xffffffff, sums.sum, 0),
            __shfl_sync(0xffffffff, sums.total, 0)};
}

__device__ float upstream_of(const CrossEntropy& a, unsigned row) {
    return a.upstream == nullptr ? 1.0f : a.upstream[row * a.upstream_stride];
}

template <typename T>
__device__ T* grad_of(const CrossEntropy& a, unsigned row) {
    return static_cast<T*>(a.grad) + row * a.grad_stride;
}

// RESIDENT: a row fits in its lanes' registers and is read once. Otherwise it is read twice, the second time backwards:
// what was read last is what caches still hold.
template <typename T, typename Part, int LANES, bool RESIDENT>
__global__ void __launch_bounds__(kThreads<LANES>, kBlocksPerSM<LANES>) cross_entropy_rows(CrossEntropy a) {
    constexpr int kRows = kThreads<LANES> / LANES;
    constexpr int kStride = LANES * Part::kSteps;
    const int lane = threadIdx.x % LANES;
    const int classes = static_cast<int>(a.classes);
    const RowRule rule{a.smoothing, a.z_loss, static_cast<float>(classes)};
    const auto rows = static_cast<unsigned>(a.rows);
    const unsigned r = blockIdx.x * kRows + threadIdx.x / LANES;
    if (r >= rows) return;
    if (a.skip_ones && upstream_of(a, r) == 1.0f) return;
    const T* row = static_cast<const T*>(a.logits) + r * a.logits_stride;
    const RowCut cut = cut_row<T, Part::kVec>(reinterpret_cast<uintptr_t>(row), classes);
    const int64_t label = a.labels[r];
    if (label == a.ignore_index || label < 0 || label >= a.classes) {
        if (label != a.ignore_index && lane == 0) atomicCAS(a.bad_id, 0, kBadLabel);
        if (a.grad != nullptr) write_zeros<T, Part::kVec>(cut, lane, LANES, grad_of<T>(a, r));
        if (lane == 0 && a.losses != nullptr) a.losses[r] = 0;
        if (lane == 0 && a.statistics != nullptr) a.statistics[2 * int64_t{r}] = a.statistics[2 * int64_t{r} + 1] = 0;
        return;
    }

    Part part;
    if constexpr (RESIDENT) part.read(row, cut, 0, lane, LANES);
    RowStatistics found;
    if (a.known != nullptr) {
        found = {a.known[2 * int64_t{r}], a.known[2 * int64_t{r} + 1]};
    } else {
        const float at_label = to_float(row[label]);  // before any lane writes over it
        const bool smoothed = a.smoothing > 0;
        RowSums sums;
        if constexpr (RESIDENT) {
            part.add_to(&sums, cut, 0, lane, LANES, smoothed);
        } else {
#pragma unroll 1
            for (int first = 0; first < cut.vectors; first += kStride) {
                part.read(row, cut, first, lane, LANES);
                part.add_to(&sums, cut, first, lane, LANES, smoothed);
            }
        }
        const int edge = edge_column(cut, Part::kVec, lane);
        if (edge >= 0) sums.add(to_float(row[edge]));
        sums = reduce_lanes<LANES>(sums);
        found = {sums.base(), sums.sum};
        if (lane == 0) {
            if (a.losses != nullptr) a.losses[r] = rule.loss(found, at_label, sums.total);
            if (a.statistics != nullptr) {
                a.statistics[2 * int64_t{r}] = found.base;
                a.statistics[2 * int64_t{r} + 1] = found.sum;
            }
        }
    }
    if (a.grad == nullptr) return;

    // Read again rather than kept: the registers are the row's.
    const float scale = upstream_of(a, r) * (a.inverse_count == nullptr ? 1.0f : *a.inverse_count) * a.factor;
    const RowGradient gradient{found.base, rule.of_exponential(found, scale), rule.everywhere(scale),
                               rule.at_label(scale), static_cast<int>(a.labels[r])};
    T* grad = grad_of<T>(a, r);
    const int edge = edge_column(cut, Part::kVec, lane);
    if (edge >= 0) grad[edge] = from_float<T>(gradient.at(to_float(row[edge]), edge));
    if constexpr (RESIDENT) {
        part.write(cut, 0, lane, LANES, gradient, grad);
    } else {
#pragma unroll 1
        for (int first = last_batch(cut, kStride); first >= 0; first -= kStride) {
            part.read(row, cut, first, lane, LANES);
            part.write(cut, first, lane, LANES, gradient, grad);
        }
    }
}

// The sum over one block, for its thread 0.
template <typename T>
__device__ T sum_block(T x) {
    __shared__ T warps[kSumThreads / 32];
    for (int delta = 16; delta > 0; delta /= 2) x += __shfl_down_sync(0xffffffff, x, delta);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x < kSumThreads / 32 ? warps[threadIdx.x] : T{0};
    for (int delta = 16; delta > 0; delta /= 2) x += __shfl_down_sync(0xffffffff, x, delta);
    return x;
}

__global__ void __launch_bounds__(kSumThreads) count_labels(const int64_t* labels, int64_t rows, int64_t ignore_index,
                                                           float* inverse_count) {
    unsigned long long found = 0;
#pragma unroll 4
    for (int64_t r = threadIdx.x; r < rows; r += kSumThreads) found += labels[r] != ignore_index;
    found = sum_block(found);
    if (threadIdx.x == 0) *inverse_count = 1.0f / static_cast<float>(found > 0 ? found : 1);
}

__global__ void __launch_bounds__(kSumThreads) sum_losses(const float* losses, int64_t rows, const float* inverse_count,
                                                         float* out) {
    float sum = 0;
#pragma unroll 4
    for (int64_t r = threadIdx.x; r < rows; r += kSumThreads) sum += losses[r];
    sum = sum_block(sum);
    if (threadIdx.x == 0) *out = inverse_count == nullptr ? sum : sum * *inverse_count;
}

template <typename T, typename Part, int LANES, bool RESIDENT = true>
void launch(const CrossEntropy& a, cudaStream_t stream) {
    constexpr int kRows = kThreads<LANES> / LANES;
    // A block for its rows and no loop over more: what a loop keeps would cost the row its registers.
    const auto grid = static_cast<unsigned>((a.rows + kRows - 1) / kRows);
    cross_entropy_rows<T, Part, LANES, RESIDENT><<<grid, kThreads<LANES>, 0, stream>>>(a);
}

// Whether logits and gradient lie alike within 16 bytes in every row, so that one cut fits both.
template <typename T>
bool alike(const CrossEntropy& a) {
    if (a.grad == nullptr) return true;
    const auto offset = reinterpret_cast<uintptr_t>(a.logits) - reinterpret_cast<uintptr_t>(a.grad);
    return offset % 16 == 0 && (a.rows == 1 || (a.logits_stride - a.grad_stride) * int64_t{sizeof(T)} % 16 == 0);
}

template <typename T>
void launch_for(const CrossEntropy& a, cudaStream_t stream) {
    constexpr int kVec = 16 / sizeof(T);
    const int64_t bytes = a.classes * int64_t{sizeof(T)};
    if (!alike<T>(a)) return launch<T, Batch<T, 1, kStreamedRow.steps>, kStreamedRow.lanes, false>(a, stream);
    if (bytes <= resident_bytes(kWarpRow)) return launch<T, Batch<T, kVec, kWarpRow.steps>, kWarpRow.lanes>(a, stream);
    if (bytes <= resident_bytes(kShortRow)) {
        return launch<T, Batch<T, kVec, kShortRow.steps>, kShortRow.lanes>(a, stream);
    }
    if (bytes <= resident_bytes(kLongRow)) return launch<T, Batch<T, kVec, kLongRow.steps>, kLongRow.lanes>(a, stream);
    if (bytes <= resident_bytes(kWideRow)) return launch<T, Batch<T, kVec, kWideRow.steps>, kWideRow.lanes>(a, stream);
    launch<T, Batch<T, kVec, kStreamedRow.steps>, kStreamedRow.lanes, false>(a, stream);
}

}  // namespace

void cross_entropy_cuda(const CrossEntropy& a, DType dtype, int device, void* stream) {
    constexpr const char* name = "cross_entropy_cuda";
    require_at_least("rows", a.rows, 0);
    require_at_least("classes", a.classes, 1);
    if (a.rows > INT32_MAX) refuse("rows must be below 2^31, got " + std::to_string(a.rows));
    if (a.classes > INT32_MAX / 2) refuse("classes must be below 2^30, got " + std::to_string(a.classes));
    if (a.rows > 1) require_at_least("logits_stride", a.logits_stride, a.grad == a.logits ? a.classes : 0);
    if (a.rows > 1 && a.grad != nullptr) require_at_least("grad_stride", a.grad_stride, a.classes);
    require_at_least("upstream_stride", a.upstream_stride, 0);
    require_at_least("device", device, 0);
    if (!(a.smoothing >= 0 && a.smoothing <= 1)) refuse("smoothing must be 0 to 1, got " + std::to_string(a.smoothing));
    if (a.known != nullptr && (a.losses != nullptr || a.statistics != nullptr)) {
        refuse("losses and statistics must be null where known ones are given");
    }
    if (a.skip_ones && (a.upstream == nullptr || a.grad == a.logits)) {
        refuse("skip_ones needs upstream, and a gradient that is not in the logits' place");
    }
    if (a.grad == a.logits && a.grad_stride != a.logits_stride) refuse("a gradient in place must have logits_stride");
    if (a.rows == 0) return;
    require_pointer("logits", a.logits, true);
    require_pointer("labels", a.labels, true);
    require_pointer("bad_id", a.bad_id, true);
    const DeviceGuard guard(device, name);
    const auto on = static_cast<cudaStream_t>(stream);
    if (dtype == DType::kFloat32) launch_for<float>(a, on);
    if (dtype == DType::kFloat16) launch_for<Half>(a, on);
    if (dtype == DType::kBFloat16) launch_for<BFloat16>(a, on);
    check(cudaGetLastError(), name);
}

void cross_entropy_count_cuda(const int64_t* labels, int64_t rows, int64_t ignore_index, float* inverse_count,
                              int device, void* stream) {
    constexpr const char* name = "cross_entropy_count_cuda";
    require_at_least("rows", rows, 0);
    require_at_least("device", device, 0);
    require_pointer("labels", labels, rows > 0);
    require_pointer("inverse_count", inverse_count, true);
    const DeviceGuard guard(device, name);
    count_labels<<<1, kSumThreads, 0, static_cast<cudaStream_t>(stream)>>>(labels, rows, ignore_index, inverse_count);
    check(cudaGetLastError(), name);
}

void cross_entropy_sum_cuda(const float* losses, int64_t rows, const float* inverse_count, float* out, int device,
                            void* stream) {
    constexpr const char* name = "cross_entropy_sum_cuda";
    require_at_least("rows", rows, 0);
    require_at_least("device", device, 0);
    require_pointer("losses", losses, rows > 0);
    require_pointer("out", out, true);
    const DeviceGuard guard(device, name);
    sum_losses<<<1, kSumThreads, 0, static_cast<cudaStream_t>(stream)>>>(losses, rows, inverse_count, out);
    check(cudaGetLastError(), name);
}

}  // namespace bert_fast
