// Random and extreme inputs through the host code and the shared templates. Every buffer is exactly as large as
// promised to the code, so that the sanitizers this is built with see any access beside it.
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "host/attention.h"
#include "host/fingerprint.h"
#include "host/packing.h"
#include "shared/unpad.h"

using namespace bert_fast;

namespace {

// A random batch of 4-byte or 2-byte elements; q, k and v may be any bits, NaNs included.
void attend(std::mt19937_64& random, const char* instructions) {
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    const int64_t batch = below(5), heads = 1 + below(3), head_dim = 1 + below(70), size = below(2) == 0 ? 4 : 2;
    const std::unique_ptr<int32_t[]> starts(new int32_t[batch + 1]);
    starts[0] = 0;
    for (int64_t b = 0; b < batch; ++b) starts[b + 1] = starts[b] + static_cast<int32_t>(below(60));
    const int64_t tokens = starts[batch], row = heads * head_dim * size;
    std::unique_ptr<char[]> memory[4];
    RowsOfHeads rows[4];
    for (int i = 0; i < 4; ++i) {
        memory[i].reset(new char[tokens * row]);
        for (int64_t j = 0; j < tokens * row; ++j) memory[i][j] = static_cast<char>(random());
        rows[i] = {memory[i].get(), row, head_dim * size};
    }
    const std::unique_ptr<uint8_t[]> mask(new uint8_t[tokens]);
    for (int64_t i = 0; i < tokens; ++i) mask[i] = static_cast<uint8_t>(below(2));
    attention({rows[0], rows[1], rows[2], rows[3], starts.get(), batch, heads, head_dim, below(2) == 0 ? mask.get() : nullptr,
               0.1f, size == 4 ? HostDType::kFloat32 : HostDType::kBFloat16},
              1, nullptr, instructions);
}

}  // namespace

int main() {
    std::mt19937_64 random(7);
    for (int round = 0; round < 300 && !attention_instructions().empty(); ++round) {
        attend(random, "");
        if (attention_instructions() == "avx512") attend(random, "avx2");
    }
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    uint64_t hash = 0;
    for (int round = 0; round < 3000; ++round) {
        const int64_t batch = below(20), seqlen = below(70), positions = batch * seqlen;
        const int64_t density = below(11);
        const std::unique_ptr<uint8_t[]> mask(new uint8_t[positions]);
        for (int64_t i = 0; i < positions; ++i) mask[i] = below(10) < density ? static_cast<uint8_t>(1 + below(255)) : 0;
        const std::unique_ptr<int64_t[]> indices(new int64_t[positions]);
        const std::unique_ptr<int32_t[]> starts(new int32_t[batch + 1]), other(new int32_t[batch + 1]);
        const auto [total, longest] = unpad(mask.get(), batch, seqlen, indices.get(), starts.get());
        int64_t before = 0;
        for (int64_t first = 0; first < positions; first += kMaskBytes) {
            const uint32_t bits = visible_bits(mask.get(), first, positions, false);
            write_row_starts(bits, first, before, positions, seqlen, other.get());
            before += count_bits(bits);
        }
        for (int64_t row = 0; row < batch && positions > 0; ++row) {
            if (starts[row] != other[row]) return std::printf("round %d: row %lld\n", round, (long long)row), 1;
        }
        if (before != total || longest > seqlen) return std::printf("round %d: %lld\n", round, (long long)total), 1;

        const int64_t n = below(40);
        const std::unique_ptr<int64_t[]> lengths(new int64_t[n]), order(new int64_t[n]), offsets(new int64_t[n + 1]);
        for (int64_t i = 0; i < n; ++i) lengths[i] = below(3) == 0 ? INT64_MAX - below(3) : below(100);
        token_budget_batches(lengths.get(), n, below(2) == 0 ? INT64_MAX : 1 + below(200), below(5), order.get(),
                             offsets.get());

        const int64_t size = below(200);
        const std::unique_ptr<uint8_t[]> bytes(new uint8_t[size]);
        for (int64_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(random());
        hash ^= fingerprint({reinterpret_cast<uintptr_t>(bytes.get())}, {size}, 2 + below(40));
    }
    std::printf("ok %llx\n", static_cast<unsigned long long>(hash));
    return 0;
}
