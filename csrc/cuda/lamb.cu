// LAMB and Adam over many tensors. Pointers travel as kernel arguments, kBatch tensors a launch: there is no table on the
// device to fill, to keep or to find stale, and a CUDA graph captures the launch with all it needs. 4 KB of arguments
// is what every toolkit, driver and GPU takes; the 400 tensors of BERT-large are 8 launches a pass.
#include <vector>

#include "cuda/api.h"
#include "cuda/launch.h"
#include "host/checks.h"
#include "shared/optim_chunk.h"

namespace bert_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kFinishThreads = 1024;
constexpr int kBatch = 56;

struct Batch {
    TensorAddresses tensors[kBatch];
    int first_block[kBatch];  // ascending: a block finds its tensor by bisection
    int count;
    int blocks;
    int64_t first_partial;  // the batch's place among all blocks of the call
};

struct Step {
    AdamRule rule;
    AdamScalars scalars;
    float* squares;  // [blocks of the call, 2]
};

static_assert(sizeof(Batch) + sizeof(Step) <= 4096, "the arguments of a kernel fit in 4 KB");

struct Place {
    int tensor;
    int64_t chunk;
};

__device__ Place place_of_block(const Batch& batch) {
    const int block = static_cast<int>(blockIdx.x);
    int low = 0, high = batch.count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (batch.first_block[middle] <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return {low, block - batch.first_block[low]};
}

// The sum over all threads of a block, the same on every run; valid in thread 0.
template <int THREADS>
__device__ float sum_of_block(float x) {
    __shared__ float warps[THREADS / 32];
    for (int delta = 16; delta > 0; delta /= 2) x += __shfl_xor_sync(0xffffffff, x, delta);
    __syncthreads();  // the previous sum may still be read
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x >= 32) return x;
    x = threadIdx.x < THREADS / 32 ? warps[threadIdx.x] : 0;
    for (int delta = 16; delta > 0; delta /= 2) x += __shfl_xor_sync(0xffffffff, x, delta);
    return x;
}

__device__ bool aligned_for(const void* pointer, int element) {
    return reinterpret_cast<uintptr_t>(pointer) % (kOptimizerVector * element) == 0;
}

template <typename P, typename M>
__device__ OptimizedTensor<P, M> typed(const TensorAddresses& t) {
    return {static_cast<const P*>(t.grad), static_cast<P*>(t.param), t.master, static_cast<M*>(t.exp_avg),
            t.exp_avg_sq};
}

template <typename P, typename M>
__device__ Share share_of(const TensorAddresses& t, int64_t chunk) {
    const bool aligned = aligned_for(t.grad, sizeof(P)) && aligned_for(t.param, sizeof(P)) &&
                         aligned_for(t.master, 4) && aligned_for(t.exp_avg, sizeof(M)) && aligned_for(t.exp_avg_sq, 4);
    return make_share(t.numel, chunk, threadIdx.x, kThreads, aligned);
}

__device__ bool skipped(const Step& step) { return step.scalars.found_inf != nullptr && *step.scalars.found_inf != 0; }

__device__ float rate_of(const Step& step) {
    return step.scalars.lr_pointer != nullptr ? *step.scalars.lr_pointer : step.scalars.lr;
}

template <typename P>
__global__ void __launch_bounds__(kThreads) square_gradients(Batch batch, float* partials) {
    const Place place = place_of_block(batch);
    const TensorAddresses t = batch.tensors[place.tensor];
    const Share share = make_share(t.numel, place.chunk, threadIdx.x, kThreads, aligned_for(t.grad, sizeof(P)));
    const float sum = sum_of_block<kThreads>(sum_of_squares(static_cast<const P*>(t.grad), share));
    if (threadIdx.x == 0) partials[batch.first_partial + blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kFinishThreads)
    finish_norm(const float* partials, int64_t count, float max_norm, const float* grad_scale, float* out) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += kFinishThreads) sum += partials[i];
    sum = sum_of_block<kFinishThreads>(sum);
    if (threadIdx.x != 0) return;
    const float unscale = grad_scale != nullptr ? 1.0f / *grad_scale : 1.0f;
    const float norm = sqrtf(sum) * unscale;
    out[0] = norm;
    out[1] = clip_factor(norm, max_norm) * unscale;
}

template <bool APPLY, typename P, typename M>
__global__ void __launch_bounds__(kThreads) advance_tensors(Batch batch, Step step) {
    if (skipped(step)) return;
    const Place place = place_of_block(batch);
    const TensorAddresses t = batch.tensors[place.tensor];
    const BiasCorrection bias = bias_correction(step.rule, *t.step);
    const float scale = step.scalars.grad_factor != nullptr ? *step.scalars.grad_factor : 1.0f;
    const Squares squares = advance<APPLY>(typed<P, M>(t), step.rule, bias, scale, rate_of(step),
                                           share_of<P, M>(t, place.chunk));
    if constexpr (!APPLY) {
        const float weight = sum_of_block<kThreads>(squares.weight);
        const float update = sum_of_block<kThreads>(squares.update);
        if (threadIdx.x == 0) {
            step.squares[2 * (batch.first_partial + blockIdx.x)] = weight;
            step.squares[2 * (batch.first_partial + blockIdx.x) + 1] = update;
        }
    }
}

// Every block adds up its tensor's partial sums for itself, in the same order: a launch less, and no atomics.
template <typename P, typename M>
__global__ void __launch_bounds__(kThreads) apply_updates(Batch batch, Step step) {
    if (skipped(step)) return;
    __shared__ float ratio;
    const Place place = place_of_block(batch);
    const TensorAddresses t = batch.tensors[place.tensor];
    const int64_t chunks = (t.numel + kOptimizerChunk - 1) / kOptimizerChunk;
    const float* squares = step.squares + 2 * (batch.first_partial + batch.first_block[place.tensor]);
    float weight = 0, update = 0;
    for (int64_t i = threadIdx.x; i < chunks; i += kThreads) {
        weight += squares[2 * i];
        update += squares[2 * i + 1];
    }
    weight = sum_of_block<kThreads>(weight);
    update = sum_of_block<kThreads>(update);
    if (threadIdx.x == 0) ratio = trust_ratio(step.rule, weight, update);
    __syncthreads();
    apply(typed<P, M>(t), step.rule, bias_correction(step.rule, *t.step), rate_of(step) * ratio,
          share_of<P, M>(t, place.chunk));
}

// Cuts the list into batches; tensors without elements are left out.
std::vector<Batch> make_batches(const std::vector<TensorAddresses>& tensors) {
    std::vector<Batch> batches;
    int64_t partials = 0;
    for (const TensorAddresses& t : tensors) {
        require_at_least("numel", t.numel, 0);
        if (t.numel == 0) continue;
        const int64_t blocks = (t.numel + kOptimizerChunk - 1) / kOptimizerChunk;
        if (blocks > INT32_MAX) refuse("numel is too large: " + std::to_string(t.numel));
        if (batches.empty() || batches.back().count == kBatch || batches.back().blocks > INT32_MAX - blocks) {
            batches.push_back({});
            batches.back().first_partial = partials;
        }
        Batch& batch = batches.back();
        batch.tensors[batch.count] = t;
        batch.first_block[batch.count++] = batch.blocks;
        batch.blocks += static_cast<int>(blocks);
        partials += blocks;
    }
    return batches;
}

void require_tensor_pointers(const TensorAddresses& t, bool whole) {
    require_pointer("grad", t.grad, t.numel > 0);
    require_pointer("param", t.param, whole && t.numel > 0);
    require_pointer("exp_avg", t.exp_avg, whole && t.numel > 0);
    require_pointer("exp_avg_sq", t.exp_avg_sq, whole && t.numel > 0);
    require_pointer("step", t.step, whole && t.numel > 0);
}

template <typename P, typename M>
void launch_step(const std::vector<Batch>& batches, const Step& step, bool adapt, cudaStream_t stream) {
    for (const Batch& batch : batches) {
        if (adapt) {
            advance_tensors<false, P, M><<<batch.blocks, kThreads, 0, stream>>>(batch, step);
            apply_updates<P, M><<<batch.blocks, kThreads, 0, stream>>>(batch, step);
        } else {
            advance_tensors<true, P, M><<<batch.blocks, kThreads, 0, stream>>>(batch, step);
        }
    }
}

template <typename P>
void launch_step(const std::vector<Batch>& batches, const Step& step, bool adapt, DType moment, cudaStream_t stream) {
    if (moment == DType::kFloat32) return launch_step<P, float>(batches, step, adapt, stream);
    launch_step<P, BFloat16>(batches, step, adapt, stream);
}

template <typename P>
void launch_squares(const std::vector<Batch>& batches, float* partials, cudaStream_t stream) {
    for (const Batch& batch : batches) {
        square_gradients<P><<<batch.blocks, kThreads, 0, stream>>>(batch, partials);
    }
}

}  // namespace

int64_t optimizer_chunk() { return kOptimizerChunk; }

void square_gradients_cuda(const std::vector<TensorAddresses>& tensors, DType dtype, float* partials, int device,
                           void* stream) {
    constexpr const char* name = "square_gradients_cuda";
    require_at_least("device", device, 0);
    for (const TensorAddresses& t : tensors) require_tensor_pointers(t, false);
    const std::vector<Batch> batches = make_batches(tensors);
    if (batches.empty()) return;
    require_pointer("partials", partials, true);
    const DeviceGuard guard(device, name);
    const auto on = static_cast<cudaStream_t>(stream);
    if (dtype == DType::kFloat32) launch_squares<float>(batches, partials, on);
    if (dtype == DType::kFloat16) launch_squares<Half>(batches, partials, on);
    if (dtype == DType::kBFloat16) launch_squares<BFloat16>(batches, partials, on);
    check(cudaGetLastError(), name);
}

void clip_factor_cuda(const float* partials, int64_t count, float max_norm, const float* grad_scale, float* out,
                      int device, void* stream) {
    constexpr const char* name = "clip_factor_cuda";
    require_at_least("count", count, 0);
    require_at_least("device", device, 0);
    if (!(max_norm > 0)) refuse("max_norm must be above 0, got " + std::to_string(max_norm));
    require_pointer("partials", partials, count > 0);
    require_pointer("out", out, true);
    const DeviceGuard guard(device, name);
    finish_norm<<<1, kFinishThreads, 0, static_cast<cudaStream_t>(stream)>>>(partials, count, max_norm, grad_scale,
                                                                             out);
    check(cudaGetLastError(), name);
}

void adam_cuda(const std::vector<TensorAddresses>& tensors, const AdamRule& rule, const AdamScalars& scalars,
               bool adapt, float* squares, DType dtype, DType moment, int device, void* stream) {
    constexpr const char* name = "adam_cuda";
    require_at_least("device", device, 0);
    if (moment == DType::kFloat16) refuse("moment must be float32 or bfloat16, got float16");
    for (const TensorAddresses& t : tensors) require_tensor_pointers(t, true);
    const std::vector<Batch> batches = make_batches(tensors);
    if (batches.empty()) return;
    require_pointer("squares", squares, adapt);
    const Step step{rule, scalars, squares};
    const DeviceGuard guard(device, name);
    const auto on = static_cast<cudaStream_t>(stream);
    if (dtype == DType::kFloat32) launch_step<float>(batches, step, adapt, moment, on);
    if (dtype == DType::kFloat16) launch_step<Half>(batches, step, adapt, moment, on);
    if (dtype == DType::kBFloat16) launch_step<BFloat16>(batches, step, adapt, moment, on);
    check(cudaGetLastError(), name);
}

}  // namespace bert_fast
