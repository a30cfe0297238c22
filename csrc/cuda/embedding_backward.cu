#include <algorithm>

#include "cuda/api.h"
#include "cuda/arguments.h"
#include "cuda/launch.h"
#include "shared/embedding_gradient.h"

namespace bert_fast {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPartialRows = 2048;  // blocks at most, each with a row of column sums
constexpr int kSumColumns = 32, kSumLanes = 32;

struct Arguments {
    EmbeddingInputs in;
    Dropout dropout;
    const void* dy;
    const float* mean;
    const float* rstd;
    EmbeddingGradients out;
    float* partials;  // [kColumnPlanes, blocks, H]
};

// Both sums over the block, in an order that depends on nothing but its size. One barrier: the next row uses the other
// half of the buffer, and nobody is two rows ahead.
__device__ NormSums sum_block(NormSums x, int half) {
    __shared__ NormSums warp_sums[2][kThreads / 32];
    for (int delta = 16; delta > 0; delta /= 2) {
        x.g += __shfl_xor_sync(0xffffffff, x.g, delta);
        x.dot += __shfl_xor_sync(0xffffffff, x.dot, delta);
    }
    if (threadIdx.x % 32 == 0) warp_sums[half][threadIdx.x / 32] = x;
    __syncthreads();
    x = {0, 0};
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) {
        x.g += warp_sums[half][warp].g;
        x.dot += warp_sums[half][warp].dot;
    }
    return x;
}

// A block per row, one after the other: each thread then has few columns, and room for what is added up over all rows.
template <typename T, typename Row, typename Columns, int BLOCKS_PER_SM>
__global__ void __launch_bounds__(kThreads, BLOCKS_PER_SM) embedding_backward(Arguments a) {
    const int lane = threadIdx.x, lanes = blockDim.x, hidden = static_cast<int>(a.in.hidden);
    const DropoutMask dropout = a.dropout.mask();
    float* const partials = a.partials + int64_t{blockIdx.x} * hidden;
    const int64_t plane_stride = int64_t{gridDim.x} * hidden;
    Columns columns;
    columns.begin(partials, plane_stride, hidden, lane, lanes);
    int half = 0;
    for (int64_t token = blockIdx.x; token < a.in.tokens; token += gridDim.x, half ^= 1) {
        const TokenRows rows = token_rows(a.in.input_ids, a.in.token_type_ids, a.in.position_ids, token, a.in.vocab,
                                          a.in.positions, a.in.types);
        const int64_t first = token * hidden;
        const RowSource<T> source{static_cast<const T*>(a.in.word) + rows.word * hidden,
                                  static_cast<const T*>(a.in.position) + rows.position * hidden,
                                  static_cast<const T*>(a.in.type) + rows.type * hidden, hidden, lane, lanes};
        const SumGradient<T> target{a.out.d_sum == nullptr ? nullptr : static_cast<T*>(a.out.d_sum) + first,
                                    {rows.word == a.out.skip ? nullptr : table_row(a.out.tables[0], rows.word, hidden),
                                     table_row(a.out.tables[1], rows.position, hidden),
                                     table_row(a.out.tables[2], rows.type, hidden)}};
        const NormGradient<T> gradient{
            static_cast<const T*>(a.in.gamma), static_cast<const T*>(a.dy) + first, target, dropout, first,
            a.mean[token], a.rstd[token], a.in.types <= kFewTypes ? static_cast<int>(rows.type) : -1};
        Row row;
        NormSums means = sum_block(row.read(source, gradient), half);
        means.g /= static_cast<float>(hidden);
        means.dot /= static_cast<float>(hidden);
        row.write(source, gradient, means, &columns);
    }
    columns.end(partials, plane_stride, hidden, lane, lanes);
}

// The second stage: the sum of each column over the blocks' rows.
template <typename T>
__global__ void __launch_bounds__(kSumColumns * kSumLanes)
    column_sums(const float* partials, int64_t rows, int64_t hidden, EmbeddingGradients out) {
    __shared__ float sums[kSumLanes][kSumColumns + 1];
    const int plane = blockIdx.y, x = threadIdx.x, y = threadIdx.y;
    const int64_t column = int64_t{blockIdx.x} * kSumColumns + x;
    float sum = 0;
    if (column < hidden) {
        for (int64_t row = y; row < rows; row += kSumLanes) sum += partials[(plane * rows + row) * hidden + column];
    }
    sums[y][x] = sum;
    __syncthreads();
    if (y != 0 || column >= hidden) return;
    sum = 0;
    for (int lane = 0; lane < kSumLanes; ++lane) sum += sums[lane][x];
    void* const target = plane == kGammaPlane ? out.d_gamma : plane == kBetaPlane ? out.d_beta : out.d_type;
    const int64_t at = plane > kTypePlane ? (plane - kTypePlane) * hidden + column : column;
    static_cast<T*>(target)[at] = from_float<T>(sum);
}

int64_t partial_rows(int64_t tokens) { return std::min(tokens, kPartialRows); }

// As many blocks as run at once: one more would double the time, for each has its share of the rows. Returns how many.
template <typename T, typename Row, typename Columns, int BLOCKS_PER_SM>
unsigned launch(const Arguments& a, int threads, const Device& device) {
    constexpr auto kernel = embedding_backward<T, Row, Columns, BLOCKS_PER_SM>;
    const int64_t at_once = blocks_at_once(kernel, threads, device);
    const auto blocks = static_cast<unsigned>(std::min(partial_rows(a.in.tokens), at_once));
    kernel<<<blocks, threads, 0, device.stream>>>(a);
    return blocks;
}

template <typename T, int VEC, int ELEMENTS>
unsigned launch_cached(const Arguments& a, const Device& device) {
    constexpr int kSteps = ELEMENTS / VEC, kBlocksPerSM = ELEMENTS == kNarrowGradientElements ? 2 : 1;
    const int64_t threads = (a.in.hidden + ELEMENTS - 1) / ELEMENTS;
    const auto block = static_cast<int>(std::min<int64_t>((threads + 31) / 32 * 32, kThreads));
    return launch<T, CachedGradientRow<T, VEC, kSteps>, RegisterColumns<VEC, kSteps>, kBlocksPerSM>(a, block, device);
}

template <typename T, int VEC>
unsigned launch_rows(const Arguments& a, const Device& device) {
    const bool narrow = a.in.hidden <= kThreads * kNarrowGradientElements;
    if (narrow) return launch_cached<T, VEC, kNarrowGradientElements>(a, device);
    return launch_cached<T, VEC, kWideGradientElements>(a, device);
}

template <typename T>
void launch_for(const Arguments& a, const Device& device) {
    constexpr int kVec = 16 / sizeof(T);
    const bool aligned = all_aligned({a.in.word, a.in.position, a.in.type, a.in.gamma, a.dy, a.out.d_sum,
                                      a.out.tables[0], a.out.tables[1], a.out.tables[2]});
    unsigned rows;
    if (a.in.hidden > kThreads * kWideGradientElements) {
        rows = launch<T, StreamedGradientRow<T>, MemoryColumns, 2>(a, kThreads, device);
    } else if (a.in.hidden % kVec == 0 && aligned) {
        rows = launch_rows<T, kVec>(a, device);
    } else {
        rows = launch_rows<T, 1>(a, device);
    }
    check(cudaGetLastError(), device.function);
    const auto columns = static_cast<unsigned>((a.in.hidden + kSumColumns - 1) / kSumColumns);
    const auto planes = static_cast<unsigned>(kTypePlane + (a.out.d_type == nullptr ? 0 : a.in.types));
    const dim3 grid(columns, planes), block(kSumColumns, kSumLanes);
    column_sums<T><<<grid, block, 0, device.stream>>>(a.partials, rows, a.in.hidden, a.out);
    check(cudaGetLastError(), device.function);
}

}  // namespace

int64_t embedding_layer_norm_backward_cuda_workspace(int64_t tokens, int64_t hidden) {
    require_at_least("tokens", tokens, 0);
    require_width(hidden);
    return kColumnPlanes * partial_rows(tokens) * hidden * static_cast<int64_t>(sizeof(float));
}

void embedding_layer_norm_backward_cuda(const EmbeddingInputs& inputs, const void* dy, const float* mean,
                                        const float* rstd, const EmbeddingGradients& gradients, void* workspace,
                                        int64_t workspace_bytes, int device, void* stream) {
    constexpr const char* name = "embedding_layer_norm_backward_cuda";
    require_embedding(inputs);
    require_at_least("device", device, 0);
    require_pointer("d_gamma", gradients.d_gamma, true);
    require_pointer("d_beta", gradients.d_beta, true);
    if (gradients.d_type != nullptr && inputs.types > kFewTypes) refuse("d_type is for at most 2 rows of types");
    const Device on{device, static_cast<cudaStream_t>(stream), name};
    const DeviceGuard guard(device, name);
    if (inputs.tokens == 0) {
        const auto row = static_cast<size_t>(inputs.hidden) * (inputs.dtype == DType::kFloat32 ? 4 : 2);
        check(cudaMemsetAsync(gradients.d_gamma, 0, row, on.stream), name);
        check(cudaMemsetAsync(gradients.d_beta, 0, row, on.stream), name);
        const auto types = static_cast<size_t>(inputs.types);
        if (gradients.d_type != nullptr) check(cudaMemsetAsync(gradients.d_type, 0, types * row, on.stream), name);
        return;
    }
    const int64_t needed = embedding_layer_norm_backward_cuda_workspace(inputs.tokens, inputs.hidden);
    require_pointer("workspace", workspace, true);
    require_at_least("workspace_bytes", workspace_bytes, needed);
    for (const void* pointer : {dy, static_cast<const void*>(mean), static_cast<const void*>(rstd)}) {
        require_pointer("dy, mean and rstd", pointer, true);
    }
    const Arguments a{inputs, dropout_of(inputs.dropout), dy, mean, rstd, gradients, static_cast<float*>(workspace)};
    if (inputs.dtype == DType::kFloat32) launch_for<float>(a, on);
    if (inputs.dtype == DType::kFloat16) launch_for<Half>(a, on);
    if (inputs.dtype == DType::kBFloat16) launch_for<BFloat16>(a, on);
}

}  // namespace bert_fast
