// CUDA's threads on the host, for tests: the .cu files of csrc/cuda are compiled against this header by a C++ compiler,
// with their launches rewritten by emulated.py, and run on host memory. A thread is a fiber; a barrier or a shuffle
// hands over to the next one. The threads of a block, and the blocks, run in one order in every other launch and
// backwards in the rest, so that what relies on an order that CUDA does not promise shows. Threads that wait for each
// other at different places are an error. What it does not show: vector loads, memory that two threads race for in
// between barriers, speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

enum class Waits { kNothing, kForBlock, kForWarp, kFinished };

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    dim3 index;
    Waits waits;
    unsigned mask;     // the lanes that a warp's exchange is among
    uint64_t given;    // what this lane hands over
    uint64_t seen[32];  // what the lanes of the warp handed over
};

constexpr size_t kStack = 64 * 1024;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline ucontext_t scheduler;
inline Fiber* current;
inline const std::function<void()>* body;
inline unsigned launches;

inline void run_body() {
    (*body)();
    current->waits = Waits::kFinished;
    swapcontext(&current->context, &scheduler);
}

inline void wait(Waits what) {
    current->waits = what;
    swapcontext(&current->context, &scheduler);
}

inline void release_warps(unsigned threads) {
    for (unsigned first = 0; first < threads; first += 32) {
        for (unsigned lane = first; lane < std::min(first + 32, threads); ++lane) {
            if (fibers[lane]->waits != Waits::kForWarp) continue;
            const unsigned mask = fibers[lane]->mask;
            bool complete = true;
            for (unsigned k = 0; k < 32; ++k) {
                if ((mask >> k & 1) == 0) continue;
                if (first + k >= threads) throw std::runtime_error("a warp's mask names lanes that are not there");
                const Fiber& other = *fibers[first + k];
                complete = complete && other.waits == Waits::kForWarp && other.mask == mask;
            }
            if (!complete) continue;
            for (unsigned k = 0; k < 32; ++k) {
                if ((mask >> k & 1) == 0) continue;
                Fiber& member = *fibers[first + k];
                for (unsigned j = 0; j < 32; ++j) member.seen[j] = mask >> j & 1 ? fibers[first + j]->given : ~0ull;
                member.waits = Waits::kNothing;
            }
        }
    }
}

inline void run_block(unsigned threads, bool backwards) {
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = *fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        fiber.waits = Waits::kNothing;
        makecontext(&fiber.context, run_body, 0);
    }
    for (unsigned finished = 0; finished < threads;) {
        bool moved = false;
        for (unsigned i = 0; i < threads; ++i) {
            current = fibers[backwards ? threads - 1 - i : i].get();
            if (current->waits != Waits::kNothing) continue;
            threadIdx = current->index;
            swapcontext(&scheduler, &current->context);
            moved = true;
        }
        finished = 0;
        unsigned at_barrier = 0;
        for (unsigned i = 0; i < threads; ++i) {
            finished += fibers[i]->waits == Waits::kFinished;
            at_barrier += fibers[i]->waits == Waits::kForBlock;
        }
        if (at_barrier > 0 && at_barrier + finished == threads) {
            for (unsigned i = 0; i < threads; ++i) {
                if (fibers[i]->waits == Waits::kForBlock) fibers[i]->waits = Waits::kNothing;
            }
            continue;
        }
        release_warps(threads);
        if (!moved) throw std::runtime_error("threads wait for each other at different places");
    }
}

template <typename Body>
void launch(dim3 grid, dim3 block, size_t, void*, Body call) {
    const unsigned threads = block.x * block.y * block.z;
    if (threads == 0 || threads > 1024) throw std::runtime_error("a block has 1 to 1024 threads");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) throw std::runtime_error("the grid is empty");
    if (grid.y > 65535 || grid.z > 65535 || grid.x > INT32_MAX) throw std::runtime_error("the grid is too large");
    while (fibers.size() < threads) {
        fibers.push_back(std::make_unique<Fiber>());
        fibers.back()->stack.reset(new char[kStack]);
    }
    for (unsigned i = 0; i < threads; ++i) {
        fibers[i]->index = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
    }
    const std::function<void()> function = call;
    body = &function;
    gridDim = grid;
    blockDim = block;
    const bool backwards = launches++ % 2 == 1;
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t at = backwards ? blocks - 1 - i : i;
        blockIdx = dim3(static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                        static_cast<unsigned>(at / grid.x / grid.y));
        run_block(threads, backwards);
    }
}

// The value that lane `from` of the warp hands over; its own where there is no such lane.
template <typename N>
N exchange(unsigned mask, N value, int from) {
    static_assert(sizeof(N) <= 8, "one register or two");
    std::memcpy(&current->given, &value, sizeof value);
    current->mask = mask;
    Fiber* const self = current;
    wait(Waits::kForWarp);
    if (from < 0 || from > 31) return value;
    N result;
    std::memcpy(&result, &self->seen[from], sizeof result);
    return result;
}

inline int lane() { return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32); }

template <typename N, typename Change>
N atomic(N* target, Change change) {
    const N old = *target;
    *target = change(old);
    return old;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::Waits::kForBlock); }
inline void __syncwarp(unsigned mask = 0xffffffff) { emulator::exchange(mask, 0, 0); }
inline void __threadfence() {}

template <typename N>
N __shfl_sync(unsigned mask, N value, int from) { return emulator::exchange(mask, value, from & 31); }
template <typename N>
N __shfl_xor_sync(unsigned mask, N value, int bits) { return emulator::exchange(mask, value, emulator::lane() ^ bits); }
template <typename N>
N __shfl_up_sync(unsigned mask, N value, unsigned by) {
    return emulator::exchange(mask, value, emulator::lane() - static_cast<int>(by));
}
template <typename N>
N __shfl_down_sync(unsigned mask, N value, unsigned by) {
    return emulator::exchange(mask, value, emulator::lane() + static_cast<int>(by));
}
inline unsigned __ballot_sync(unsigned mask, int yes) {
    unsigned votes = 0;
    emulator::Fiber* const self = emulator::current;
    emulator::exchange(mask, yes, 0);
    for (unsigned lane = 0; lane < 32; ++lane) {
        int vote = 0;
        std::memcpy(&vote, &self->seen[lane], sizeof vote);
        votes |= (mask >> lane & 1 && vote != 0 ? 1u : 0u) << lane;
    }
    return votes;
}
inline int __any_sync(unsigned mask, int yes) { return __ballot_sync(mask, yes) != 0; }
inline int __all_sync(unsigned mask, int yes) { return __ballot_sync(mask, yes) == mask; }

template <typename N>
N __ldg(const N* source) { return *source; }
template <typename N>
N atomicAdd(N* target, N value) { return emulator::atomic(target, [=](N old) { return static_cast<N>(old + value); }); }
template <typename N>
N atomicMax(N* target, N value) { return emulator::atomic(target, [=](N old) { return std::max(old, value); }); }
template <typename N>
N atomicExch(N* target, N value) { return emulator::atomic(target, [=](N) { return value; }); }
inline int atomicCAS(int* target, int expected, int value) {
    return emulator::atomic(target, [=](int old) { return old == expected ? value : old; });
}

template <typename N>
N min(N a, N b) { return b < a ? b : a; }
template <typename N>
N max(N a, N b) { return a < b ? b : a; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }

// The runtime: one device, whose memory is the host's.
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
struct cudaFuncAttributes {};
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaSuccess"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
    std::memset(target, value, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 3, cudaSuccess; }
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
    return *blocks = 2, cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) { return cudaSuccess; }
