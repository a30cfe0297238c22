#include "host/quantized_rows.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "host/checks.h"

namespace bert_fast {
namespace {

// Rows that a thread takes at a time: enough to make taking them cheap.
constexpr int64_t kRowsAtATime = 8;

void check(const QuantizedRows& call, int threads, ParallelFunction parallel) {
    require_at_least("rows", call.rows, 0);
    require_at_least("width", call.width, 1);
    require_at_least("threads", threads, 1);
    require_pointer("parallel", reinterpret_cast<const void*>(parallel), threads > 1);
    const bool some = call.rows > 0;
    const bool product = call.column_sums != nullptr;
    require_pointer("x", call.x, some);
    require_pointer("scale", call.scale, some && product);
    require_pointer("least", call.least, some && product);
    require_pointer("bias", call.bias, product);
    require_pointer("norm_bias", call.norm_bias, call.norm_weight != nullptr);
    require_pointer("quantized_scale", call.quantized_scale, call.quantized != nullptr);
    require_pointer("quantized_least", call.quantized_least, call.quantized != nullptr);
}

struct Free {
    void operator()(float* p) const { std::free(p); }
};

struct Job {
    const QuantizedRows& call;
    float* scratch;
    int64_t scratch_of_thread;
    std::atomic<int64_t> next_row{0}, next_thread{0};

    void work() {
#ifdef BERT_FAST_HOST_VECTORS
        float* row = scratch + next_thread++ * scratch_of_thread;
        for (int64_t t = next_row.fetch_add(kRowsAtATime); t < call.rows; t = next_row.fetch_add(kRowsAtATime)) {
            quantized_rows_avx512(call, t, std::min(t + kRowsAtATime, call.rows), row);
        }
#endif
    }
};

}  // namespace

std::string quantized_rows_reason() {
#ifdef BERT_FAST_HOST_VECTORS
    __builtin_cpu_init();
    const bool vectors = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (vectors && __builtin_cpu_supports("avx512vnni")) return "";
    return "the processor has no AVX-512 VNNI";
#else
    return "the extension was built for another processor than x86-64, or by a compiler too old for AVX-512";
#endif
}

void quantized_rows(const QuantizedRows& call, int threads, ParallelFunction parallel) {
    const std::string reason = quantized_rows_reason();
    if (!reason.empty()) refuse("int8 cannot run here: " + reason);
    check(call, threads, parallel);
    if (call.rows == 0) return;
    threads = static_cast<int>(std::min<int64_t>(threads, (call.rows + kRowsAtATime - 1) / kRowsAtATime));
    const int64_t floats = (call.width + 15) / 16 * 16;
    const std::unique_ptr<float, Free> scratch(
        static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(floats) * threads * sizeof(float))));
    if (scratch == nullptr) throw std::bad_alloc();
    Job job{call, scratch.get(), floats};
    if (threads == 1) {
        job.work();
    } else {
        parallel([](void* data) { static_cast<Job*>(data)->work(); }, &job, static_cast<unsigned>(threads), 0);
    }
}

}  // namespace bert_fast
