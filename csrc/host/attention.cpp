#include "host/attention.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>

#include "host/checks.h"

namespace bert_fast {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
// Queries of an item where there are too few heads and sequences to keep every thread busy.
constexpr int64_t kSplitRows = 64;
// Under a window an item holds so many queries and only the keys that they see. Fixed, because where its keys begin
// decides which of a row's weights are summed together.
constexpr int64_t kWindowRows = 128;

struct Build {
    std::string name;
    const AttentionKernel* kernel;
};

// What this machine can run, best first.
std::vector<Build> available() {
    std::vector<Build> builds;
#ifdef BERT_FAST_HOST_VECTORS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
#ifdef BERT_FAST_HOST_BF16_PAIRS
        if (__builtin_cpu_supports("avx512bf16")) builds.push_back({"avx512bf16", &kAttentionAvx512Bf16});
#endif
        builds.push_back({"avx512", &kAttentionAvx512});
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) builds.push_back({"avx2", &kAttentionAvx2});
#endif
    return builds;
}

const AttentionKernel& kernel_for(const std::string& instructions) {
    const auto builds = available();
    for (const Build& build : builds) {
        if (instructions.empty() || instructions == build.name) return *build.kernel;
    }
    const std::string wanted = instructions.empty() ? "none" : instructions;
    refuse("instructions must be among those of this machine, got " + wanted);
}

void check(const AttentionCall& call, int threads, ParallelFunction parallel) {
    require_at_least("batch", call.batch, 0);
    require_at_least("heads", call.heads, 1);
    require_at_least("head_dim", call.head_dim, 1);
    require_at_least("window", call.window, -1);
    require_at_least("threads", threads, 1);
    require_pointer("parallel", reinterpret_cast<const void*>(parallel), threads > 1);
    require_pointer("cu_seqlens", call.cu_seqlens, true);
    if (call.cu_seqlens[0] != 0) refuse("cu_seqlens must begin with 0, got " + std::to_string(call.cu_seqlens[0]));
    for (int64_t b = 0; b < call.batch; ++b) {
        if (call.cu_seqlens[b + 1] < call.cu_seqlens[b]) {
            refuse("cu_seqlens must not fall, got " + std::to_string(call.cu_seqlens[b]) + " before " +
                   std::to_string(call.cu_seqlens[b + 1]));
        }
    }
    const bool needed = call.cu_seqlens[call.batch] > 0;
    require_pointer("q", call.q.data, needed);
    require_pointer("k", call.k.data, needed);
    require_pointer("v", call.v.data, needed);
    require_pointer("out", call.out.data, needed);
}

RowsOfHeads at(const RowsOfHeads& x, int64_t row, int64_t head) {
    return {x.data + row * x.row + head * x.head, x.row, x.head};
}

// The work of all threads: each takes the next sequence, head and range of queries until none is left. Items of the
// longest sequences come first, so that no thread is left alone with one at the end.
struct Job {
    const AttentionCall& call;
    void (*attend)(const AttentionItem&, float*);
    std::vector<int64_t> sequences, ends;  // ends[i]: the number of items up to and with those of sequences[i]
    int64_t split;
    float* scratch;
    int64_t scratch_of_thread;
    std::atomic<int64_t> next_item{0}, next_thread{0};

    void run(int64_t index, float* memory) const {
        const auto found = std::upper_bound(ends.begin(), ends.end(), index);
        const int64_t sequence = sequences[found - ends.begin()];
        const int64_t within = index - (found == ends.begin() ? 0 : *(found - 1));
        const int64_t start = call.cu_seqlens[sequence], length = call.cu_seqlens[sequence + 1] - start;
        const int64_t head = within % call.heads, first = within / call.heads * split;
        const int64_t last = std::min(first + split, length);
        const bool local = call.window >= 0;
        const int64_t key = local ? std::max<int64_t>(0, first - call.window) : 0;
        const int64_t end = local ? std::min(length, last + call.window) : length;
        const ScoreBias& bias = call.bias;
        attend({at(call.q, start, head), at(call.k, start + key, head), at(call.v, start + key, head),
                at(call.out, start, head), call.key_mask == nullptr ? nullptr : call.key_mask + start + key,
                bias.data == nullptr ? nullptr : bias.data + sequence * bias.sequence + head * bias.head + key,
                bias.query, key, end - key, first, last, call.head_dim, call.window, call.scale * kLog2E},
               memory);
    }

    void work() {
        float* memory = scratch + next_thread++ * scratch_of_thread;
        for (int64_t i = next_item++; i < ends.back(); i = next_item++) run(i, memory);
    }
};

struct Free {
    void operator()(float* p) const { std::free(p); }
};

}  // namespace

std::string attention_instructions() {
    const auto builds = available();
    return builds.empty() ? "" : builds.front().name;
}

void attention(const AttentionCall& call, int threads, ParallelFunction parallel, const std::string& instructions) {
    const AttentionKernel& kernel = kernel_for(instructions);
    check(call, threads, parallel);
    const auto length = [&](int64_t b) -> int64_t { return call.cu_seqlens[b + 1] - call.cu_seqlens[b]; };
    std::vector<int64_t> sequences;
    for (int64_t b = 0; b < call.batch; ++b) {
        if (length(b) > 0) sequences.push_back(b);
    }
    if (sequences.empty()) return;
    std::stable_sort(sequences.begin(), sequences.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });

    const int64_t longest = length(sequences.front());
    const bool plenty = static_cast<int64_t>(sequences.size()) * call.heads >= 4 * threads;
    const bool local = call.window >= 0 && call.window < longest;
    const int64_t split = local ? kWindowRows : plenty || threads == 1 ? longest : kSplitRows;
    const int64_t keys = local ? std::min(longest, kWindowRows + 2 * call.window) : longest;
    std::vector<int64_t> ends;
    int64_t items = 0;
    for (const int64_t b : sequences) ends.push_back(items += (length(b) + split - 1) / split * call.heads);

    threads = static_cast<int>(std::min<int64_t>(threads, items));
    const int64_t floats = (kernel.scratch_floats(keys, call.head_dim) + 15) / 16 * 16;  // whole cache lines
    const std::unique_ptr<float, Free> scratch(
        static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(floats) * threads * sizeof(float))));
    if (scratch == nullptr) throw std::bad_alloc();
    Job job{call, call.dtype == HostDType::kFloat32 ? kernel.float32 : kernel.bfloat16, std::move(sequences),
            std::move(ends), split, scratch.get(), floats};
    if (threads == 1) {
        job.work();
    } else {
        parallel([](void* data) { static_cast<Job*>(data)->work(); }, &job, static_cast<unsigned>(threads), 0);
    }
}

}  // namespace bert_fast
