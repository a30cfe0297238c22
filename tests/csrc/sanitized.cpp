// Random and extreme inputs through the host code and the shared templates. Every buffer is exactly as large as
// promised to the code, so that the sanitizers this is built with see any access beside it.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "host/attention.h"
#include "host/quantized_rows.h"
#include "host/fingerprint.h"
#include "host/masking.h"
#include "host/packing.h"
#include "host/pairing.h"
#include "host/windows.h"
#include "shared/optim_chunk.h"
#include "shared/philox.h"
#include "shared/unpad.h"

using namespace bert_fast;

namespace {

std::mt19937_64 generator(7);

int64_t below(int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(n)); }

double probability() { return below(5) == 0 ? below(2) : static_cast<double>(below(1000)) / 1000; }

// n random steps of least .. most, summed: offsets from 0 on.
std::unique_ptr<int64_t[]> offsets(int64_t n, int64_t least, int64_t most) {
    std::unique_ptr<int64_t[]> made(new int64_t[n + 1]);
    made[0] = 0;
    for (int64_t i = 0; i < n; ++i) made[i + 1] = made[i] + least + below(most - least + 1);
    return made;
}

// A random batch of 4-byte or 2-byte elements; q, k and v may be any bits, NaNs included.
void attend(const char* instructions) {
    const int64_t batch = below(5), heads = 1 + below(3), head_dim = 1 + below(70), size = below(2) == 0 ? 4 : 2;
    const std::unique_ptr<int32_t[]> starts(new int32_t[batch + 1]);
    starts[0] = 0;
    int64_t longest = 0;
    for (int64_t b = 0; b < batch; ++b) {
        const int64_t length = below(8) == 0 ? below(300) : below(60);
        starts[b + 1] = starts[b] + static_cast<int32_t>(length);
        longest = std::max(longest, length);
    }
    const int64_t tokens = starts[batch], row = heads * head_dim * size;
    std::unique_ptr<char[]> memory[4];
    RowsOfHeads rows[4];
    for (int i = 0; i < 4; ++i) {
        memory[i].reset(new char[tokens * row]);
        for (int64_t j = 0; j < tokens * row; ++j) memory[i][j] = static_cast<char>(generator());
        rows[i] = {memory[i].get(), row, head_dim * size};
    }
    const std::unique_ptr<uint8_t[]> mask(new uint8_t[tokens]);
    for (int64_t i = 0; i < tokens; ++i) mask[i] = static_cast<uint8_t>(below(2));
    const bool own = below(2) == 0, shared = below(2) == 0;  // a bias of its own for each sequence; one for all heads
    const std::unique_ptr<float[]> bias(new float[(own ? batch : 1) * (shared ? 1 : heads) * longest * longest]());
    const int64_t head = longest * longest;
    const ScoreBias added{below(2) == 0 ? bias.get() : nullptr, own ? head * (shared ? 1 : heads) : 0, shared ? 0 : head,
                          longest};
    attention({rows[0], rows[1], rows[2], rows[3], starts.get(), batch, heads, head_dim, below(2) == 0 ? mask.get() : nullptr,
               added, below(2) == 0 ? -1 : below(90), 0.1f, size == 4 ? HostDType::kFloat32 : HostDType::kBFloat16},
              1, nullptr, instructions);
}

// Stands in for GOMP_parallel.
void in_threads(void (*body)(void*), void* data, unsigned threads, unsigned) {
    std::vector<std::thread> others;
    for (unsigned i = 1; i < threads; ++i) others.emplace_back(body, data);
    body(data);
    for (std::thread& other : others) other.join();
}

// Random rows, of 4-byte or 2-byte elements on either side; those of 2 bytes may be any bits, NaNs included. False if
// two threads make anything else of them than one does.
bool pass_quantized_rows() {
    const int64_t rows = below(40), width = 1 + below(70);
    const int x_size = below(2) == 0 ? 4 : 2, out_size = below(2) == 0 ? 4 : 2;
    const auto some = [](int64_t n) {
        std::unique_ptr<float[]> values(new float[n]);
        for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(below(2000)) * 0.01f - 10;
        return values;
    };
    const std::unique_ptr<char[]> x(new char[rows * width * x_size]);
    if (x_size == 4) {
        std::memcpy(x.get(), some(rows * width).get(), rows * width * 4);
    } else {
        for (int64_t i = 0; i < rows * width * 2; ++i) x[i] = static_cast<char>(generator());
    }
    const auto residual = some(rows * width), scale = some(rows), least = some(rows);
    const auto sums = some(width), bias = some(width), weight = some(width), shift = some(width);
    const bool product = below(2) == 0, added = below(2) == 0, norm = below(2) == 0;
    const bool written = below(2) == 0, quantize = below(2) == 0;
    const auto activation = static_cast<RowActivation>(below(3));
    const auto type = [](int size) { return size == 4 ? HostDType::kFloat32 : HostDType::kBFloat16; };
    std::unique_ptr<char[]> out[2], codes[2], out_scale[2], out_least[2];
    for (int i = 0; i < 2; ++i) {
        const auto zeros = [](int64_t bytes) { return std::unique_ptr<char[]>(new char[bytes]()); };
        out[i] = zeros(rows * width * out_size), codes[i] = zeros(rows * width);
        out_scale[i] = zeros(rows * 4), out_least[i] = zeros(rows * 4);
        quantized_rows({x.get(), type(x_size), rows, width, scale.get(), least.get(), product ? sums.get() : nullptr,
                        bias.get(), added ? residual.get() : nullptr, activation, norm ? weight.get() : nullptr,
                        shift.get(), 1e-12f, written ? out[i].get() : nullptr, type(out_size),
                        quantize ? reinterpret_cast<uint8_t*>(codes[i].get()) : nullptr,
                        reinterpret_cast<float*>(out_scale[i].get()), reinterpret_cast<float*>(out_least[i].get())},
                       1 + i, i == 0 ? nullptr : in_threads);
    }
    const auto same = [](const std::unique_ptr<char[]>* made, int64_t bytes) {
        return std::memcmp(made[0].get(), made[1].get(), bytes) == 0;
    };
    return same(out, rows * width * out_size) && same(codes, rows * width) && same(out_scale, rows * 4) &&
           same(out_least, rows * 4);
}

template <typename Id>
uint64_t mask_random_tokens() {
    const int64_t vocab = 1 + below(50), n = below(6);
    const auto starts = offsets(n, 0, 40);
    const std::unique_ptr<uint8_t[]> kinds(new uint8_t[vocab]), special(new uint8_t[starts[n]]);
    for (int64_t i = 0; i < vocab; ++i) kinds[i] = static_cast<uint8_t>(below(4));
    const std::unique_ptr<int64_t[]> indices(new int64_t[n]);
    for (int64_t b = 0; b < n; ++b) indices[b] = below(kMaxIndex + 1);
    const std::unique_ptr<Id[]> ids(new Id[starts[n]]), masked(new Id[starts[n]]), labels(new Id[starts[n]]);
    for (int64_t i = 0; i < starts[n]; ++i) {
        ids[i] = static_cast<Id>(below(vocab));
        special[i] = below(4) == 0;
    }
    const MaskingRule rule{kinds.get(), vocab, below(vocab), probability(), below(3) == 0 ? -1 : below(30)};
    const Randomness randomness{generator(), static_cast<uint32_t>(generator())};
    mask_tokens(ids.get(), starts.get(), n, indices.get(), below(2) ? special.get() : nullptr, rule, randomness,
                masked.get(), labels.get());
    uint64_t sum = 0;
    for (int64_t i = 0; i < starts[n]; ++i) sum += static_cast<uint64_t>(masked[i] * 31 + labels[i]);
    return sum;
}

template <typename Id>
uint64_t pair_random_documents() {
    const int64_t documents = 2 + below(4), n = below(5);
    const auto document_offsets = offsets(documents, 1, 6);
    const int64_t sentences = document_offsets[documents];
    const auto sentence_offsets = offsets(sentences, 1, 12);
    const std::unique_ptr<int64_t[]> chosen(new int64_t[n]), counts(new int64_t[n]);
    int64_t most = 0;
    for (int64_t k = 0; k < n; ++k) {
        chosen[k] = below(documents);
        most += document_offsets[chosen[k] + 1] - document_offsets[chosen[k]];
    }
    const std::unique_ptr<PairRange[]> ranges(new PairRange[most]);
    const std::unique_ptr<int64_t[]> is_random(new int64_t[most]);
    const PairingRule rule{2 + below(below(2) == 0 ? 8 : 60), probability()};
    const Randomness randomness{generator(), static_cast<uint32_t>(generator())};
    const int64_t pairs = pair_sentences({sentence_offsets.get(), document_offsets.get(), documents}, chosen.get(), n,
                                         rule, randomness, ranges.get(), is_random.get(), counts.get());
    int64_t size = 0;
    for (int64_t k = 0; k < pairs; ++k) {
        size += ranges[k].a_end - ranges[k].a_begin + ranges[k].b_end - ranges[k].b_begin + 3;
    }
    const std::unique_ptr<Id[]> tokens(new Id[sentence_offsets[sentences]]), out(new Id[size]), types(new Id[size]);
    for (int64_t i = 0; i < sentence_offsets[sentences]; ++i) tokens[i] = static_cast<Id>(i);
    pack_pairs(tokens.get(), ranges.get(), pairs, 101, 102, out.get(), types.get());
    uint64_t sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += static_cast<uint64_t>(out[i] * 31 + types[i]);
    return sum;
}

uint64_t pack_random_windows() {
    const int64_t n = below(40), window = below(2) == 0 ? 1 + below(70) : 1 + below(9000);
    const std::unique_ptr<int64_t[]> lengths(new int64_t[n]), order(new int64_t[n]), starts(new int64_t[n + 1]);
    for (int64_t i = 0; i < n; ++i) lengths[i] = below(3) == 0 ? below(2) * window : below(window + 1);
    const int64_t windows = pack_windows(lengths.get(), n, window, order.get(), starts.get());
    return static_cast<uint64_t>(starts[windows] * 31 + windows);
}

// The first variant of PhiloxLanes whose words are not those of shared/philox.h; null if there is none.
const char* wrong_philox() {
    PhiloxLanes lanes;
    for (uint64_t* words : {lanes.block, lanes.low, lanes.high}) {
        for (int i = 0; i < kLanes; ++i) words[i] = static_cast<uint32_t>(below(3) == 0 ? -below(2) : generator());
    }
    const uint64_t seed = generator();
    const uint32_t pass = static_cast<uint32_t>(generator());
    for (const auto& [name, draw] : philox_variants()) {
        draw(lanes, pass, seed);
        for (int i = 0; i < kLanes; ++i) {
            const auto counter = [i](const uint64_t* words) { return static_cast<uint32_t>(words[i]); };
            const PhiloxWords want =
                philox4x32_10({{counter(lanes.block), pass, counter(lanes.low), counter(lanes.high)}}, seed);
            for (int w = 0; w < 4; ++w) {
                if (lanes.word(i, w) != want.words[w]) return name;
            }
        }
    }
    return nullptr;
}

}  // namespace

int main() {
    for (int round = 0; round < 100; ++round) {
        if (const char* name = wrong_philox()) return std::printf("philox: %s\n", name), 1;
    }
    for (int round = 0; round < 300 && !attention_instructions().empty(); ++round) {
        attend("");
        if (attention_instructions() == "avx512") attend("avx2");
    }
    for (int round = 0; round < 1000 && quantized_rows_reason().empty(); ++round) {
        if (!pass_quantized_rows()) return std::printf("quantized rows: round %d, two threads\n", round), 1;
    }
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

        const int64_t numel = round % 100 == 0 ? kOptimizerChunk + below(9) : below(1100);
        const std::unique_ptr<float[]> grad(new float[numel]()), param(new float[numel]()), square(new float[numel]());
        const std::unique_ptr<BFloat16[]> average(new BFloat16[numel]());
        const OptimizedTensor<float, BFloat16> tensor{grad.get(), param.get(), nullptr, average.get(), square.get()};
        const AdamRule rule = make_rule(0.9, 0.999, 1e-6, 0.01, true, true, 0, 1);
        const bool aligned = below(2) == 0;
        for (int64_t chunk = 0; chunk * kOptimizerChunk < numel; ++chunk) {
            for (int thread = 0; thread < 32; ++thread) {
                const Share share = make_share(numel, chunk, thread, 32, aligned);
                advance<false>(tensor, rule, bias_correction(rule, 1), 1, 0.1f, share);
                apply(tensor, rule, bias_correction(rule, 1), 0.1f, share);
            }
        }

        const int64_t size = below(200);
        const std::unique_ptr<uint8_t[]> bytes(new uint8_t[size]);
        for (int64_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(generator());
        hash ^= fingerprint({reinterpret_cast<uintptr_t>(bytes.get())}, {size}, 2 + below(40));

        hash += mask_random_tokens<int32_t>() + mask_random_tokens<int64_t>();
        hash += pair_random_documents<int32_t>() + pair_random_documents<int64_t>() + pack_random_windows();
    }
    std::printf("ok %llx\n", static_cast<unsigned long long>(hash));
    return 0;
}
