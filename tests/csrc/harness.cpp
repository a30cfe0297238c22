// Runs the templates of csrc/shared as the kernels do, one thread after the other, for the tests to compare with NumPy.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "shared/cross_entropy_row.h"
#include "shared/embedding_row.h"
#include "shared/floats.h"
#include "shared/optim_chunk.h"
#include "shared/philox.h"
#include "shared/unpad.h"

using namespace bert_fast;

namespace {

// As pack_range in cuda/unpad.cu, with the block scan done by a loop.
int64_t pack_range(const uint8_t* mask, const Tiling& tiling, int threads, int64_t seqlen, int64_t begin, int64_t end,
                   int64_t before, int64_t* indices, int32_t* cu_seqlens) {
    std::vector<uint16_t> packed(static_cast<size_t>(threads) * kMaskBytes);
    for (int64_t chunk = begin; chunk < end; chunk += static_cast<int64_t>(threads) * kMaskBytes) {
        int visible = 0;
        for (int thread = 0; thread < threads; ++thread) {
            const int64_t first = chunk + thread * kMaskBytes;
            const uint32_t bits = visible_bits(mask, first, tiling.positions, false);
            if (first < tiling.positions) {
                write_row_starts(bits, first, before + visible, tiling.positions, seqlen, cu_seqlens);
            }
            write_visible(bits, thread, visible, packed.data());
            visible += count_bits(bits);
        }
        for (int i = 0; i < visible; ++i) indices[before + i] = chunk + packed[i];
        before += visible;
    }
    return before;
}

template <typename Row, typename T>
void embedding_rows(const int64_t* ids, const int64_t* types, const int64_t* positions, const T* word, const T* position,
                    const T* type, const T* gamma, const T* beta, T* out, float* mean, float* rstd, const int64_t* sizes,
                    float eps, int lanes, int32_t* bad_id) {
    const int64_t tokens = sizes[0], hidden = sizes[1];
    for (int64_t token = 0; token < tokens; ++token) {
        const TokenRows at = token_rows(ids, types, positions, token, sizes[2], sizes[3], sizes[4]);
        if (at.bad != kIdsFine && *bad_id == 0) *bad_id = at.bad;
        std::vector<Row> rows;
        float sum = 0, squares = 0;
        for (int lane = 0; lane < lanes; ++lane) {
            rows.emplace_back();
            rows.back().source = {word + at.word * hidden, position + at.position * hidden, type + at.type * hidden,
                                  static_cast<int>(hidden), lane, lanes};
            sum += rows.back().read_sum();
        }
        mean[token] = sum / static_cast<float>(hidden);
        for (const Row& row : rows) squares += row.squared_deviations(mean[token]);
        rstd[token] = 1.0f / std::sqrt(squares / static_cast<float>(hidden) + eps);
        const RowTarget<T> target{gamma, beta, out + token * hidden, {}, token * hidden, mean[token], rstd[token]};
        for (const Row& row : rows) row.write(target);
    }
}

template <typename T>
int embedding(const char* kind, const int64_t* ids, const int64_t* types, const int64_t* positions, const void* word,
              const void* position, const void* type, const void* gamma, const void* beta, void* out, float* mean,
              float* rstd, const int64_t* sizes, float eps, int32_t* bad_id) {
    constexpr int kVec = 16 / sizeof(T);
    const auto run = [&](auto* row, int lanes) {
        using Row = std::remove_pointer_t<decltype(row)>;
        embedding_rows<Row, T>(ids, types, positions, static_cast<const T*>(word), static_cast<const T*>(position),
                               static_cast<const T*>(type), static_cast<const T*>(gamma), static_cast<const T*>(beta),
                               static_cast<T*>(out), mean, rstd, sizes, eps, lanes, bad_id);
        return 0;
    };
    const int lanes = kind[0] == 'w' ? kWarpLanes : kBlockLanes;
    if (kind[1] == 'c') return run(static_cast<CachedRow<T, kVec, kCachedElements / kVec>*>(nullptr), lanes);
    return run(static_cast<StreamedRow<T, 1>*>(nullptr), lanes);
}

// As the kernels of cuda/lamb.cu do one tensor: two passes with `adapt`, one without.
template <typename P, typename M>
void optimizer(const OptimizedTensor<P, M>& t, int64_t numel, const AdamRule& rule, float step, float scale, float lr,
               bool adapt, int threads, bool aligned) {
    const BiasCorrection bias = bias_correction(rule, step);
    const auto each_share = [&](auto visit) {
        for (int64_t chunk = 0; chunk * kOptimizerChunk < numel; ++chunk) {
            for (int thread = 0; thread < threads; ++thread) {
                visit(make_share(numel, chunk, thread, threads, aligned));
            }
        }
    };
    if (!adapt) return each_share([&](const Share& share) { advance<true>(t, rule, bias, scale, lr, share); });
    Squares sum{0, 0};
    each_share([&](const Share& share) {
        const Squares part = advance<false>(t, rule, bias, scale, lr, share);
        sum.weight += part.weight;
        sum.update += part.update;
    });
    const float rate = lr * trust_ratio(rule, sum.weight, sum.update);
    each_share([&](const Share& share) { apply(t, rule, bias, rate, share); });
}

template <typename P>
void optimizer_of(char moment, const void* grad, void* param, float* master, void* exp_avg, float* exp_avg_sq,
                  int64_t numel, const AdamRule& rule, float step, float scale, float lr, bool adapt, int threads,
                  bool aligned) {
    const auto run = [&](auto* first) {
        using M = std::remove_pointer_t<decltype(first)>;
        const OptimizedTensor<P, M> t{static_cast<const P*>(grad), static_cast<P*>(param), master,
                                      static_cast<M*>(exp_avg), exp_avg_sq};
        optimizer(t, numel, rule, step, scale, lr, adapt, threads, aligned);
    };
    if (moment == 'f') return run(static_cast<float*>(nullptr));
    run(static_cast<BFloat16*>(nullptr));
}

// As cross_entropy_rows in cuda/cross_entropy.cu for one row with a label inside, its lanes one after the other.
template <typename T, typename Part>
void cross_entropy_row(const T* row, T* grad, int classes, int label, const RowRule& rule, int lanes, bool resident,
                       float scale, float* loss, float* statistics) {
    const RowCut cut = cut_row<T, Part::kVec>(reinterpret_cast<uintptr_t>(row), classes);
    const int stride = lanes * Part::kSteps;
    std::vector<Part> parts(static_cast<size_t>(lanes));
    RowSums sums;
    const float at_label = to_float(row[label]);
    for (int lane = 0; lane < lanes; ++lane) {
        RowSums own;
        for (int first = 0; first < (resident ? 1 : cut.vectors); first += stride) {
            parts[lane].read(row, cut, first, lane, lanes);
            parts[lane].add_to(&own, cut, first, lane, lanes, rule.smoothing > 0);
        }
        const int edge = edge_column(cut, Part::kVec, lane);
        if (edge >= 0) own.add(to_float(row[edge]));
        sums.merge(own);
    }
    const RowStatistics found{sums.base(), sums.sum};
    statistics[0] = found.base;
    statistics[1] = found.sum;
    *loss = rule.loss(found, at_label, sums.total);
    const RowGradient gradient{found.base, rule.of_exponential(found, scale), rule.everywhere(scale),
                               rule.at_label(scale), label};
    for (int lane = 0; lane < lanes; ++lane) {
        const int edge = edge_column(cut, Part::kVec, lane);
        if (edge >= 0) grad[edge] = from_float<T>(gradient.at(to_float(row[edge]), edge));
        for (int first = resident ? 0 : last_batch(cut, stride); first >= 0; first -= stride) {
            if (!resident) parts[lane].read(row, cut, first, lane, lanes);
            parts[lane].write(cut, first, lane, lanes, gradient, grad);
        }
    }
}

template <typename T>
void cross_entropy(char kind, const void* logits, void* grad, int64_t stride, int64_t grad_stride, const int64_t* labels,
                   int64_t rows, int64_t classes, float smoothing, float z_loss, float scale, float* losses,
                   float* statistics) {
    constexpr int kVec = 16 / sizeof(T);
    const RowRule rule{smoothing, z_loss, static_cast<float>(classes)};
    for (int64_t r = 0; r < rows; ++r) {
        const T* row = static_cast<const T*>(logits) + r * stride;
        T* out = static_cast<T*>(grad) + r * grad_stride;
        const auto run = [&](auto* part, Sharing sharing, bool resident) {
            using Part = std::remove_pointer_t<decltype(part)>;
            cross_entropy_row<T, Part>(row, out, static_cast<int>(classes), static_cast<int>(labels[r]), rule,
                                       sharing.lanes, resident, scale, losses + r, statistics + 2 * r);
        };
        using Streamed = Batch<T, kVec, kStreamedRow.steps>;
        if (kind == 'w') run(static_cast<Batch<T, kVec, kWarpRow.steps>*>(nullptr), kWarpRow, true);
        if (kind == 's') run(static_cast<Batch<T, kVec, kShortRow.steps>*>(nullptr), kShortRow, true);
        if (kind == 'l') run(static_cast<Batch<T, kVec, kLongRow.steps>*>(nullptr), kLongRow, true);
        if (kind == 'x') run(static_cast<Batch<T, kVec, kWideRow.steps>*>(nullptr), kWideRow, true);
        if (kind == 't') run(static_cast<Streamed*>(nullptr), kStreamedRow, false);
        if (kind == 'u') run(static_cast<Batch<T, 1, kStreamedRow.steps>*>(nullptr), kStreamedRow, false);
    }
}

}  // namespace

extern "C" {

// settings: beta1, beta2, eps, weight_decay, lowest, highest. flags: bias correction, decoupled, adapt, aligned.
void harness_optimizer(const char* dtypes, const void* grad, void* param, float* master, void* exp_avg,
                       float* exp_avg_sq, int64_t numel, const double* settings, const int* flags, float step,
                       float scale, float lr, int threads) {
    const AdamRule rule = make_rule(settings[0], settings[1], settings[2], settings[3], flags[0], flags[1], settings[4],
                                    settings[5]);
    const auto run = dtypes[0] == 'f'   ? optimizer_of<float>
                     : dtypes[0] == 'h' ? optimizer_of<Half>
                                        : optimizer_of<BFloat16>;
    run(dtypes[1], grad, param, master, exp_avg, exp_avg_sq, numel, rule, step, scale, lr, flags[2], threads, flags[3]);
}

// What each thread of each chunk visits is counted; returns the sum of squares of the values, thread by thread.
float harness_visits(const float* values, int64_t numel, int threads, bool aligned, int32_t* visits) {
    float sum = 0;
    for (int64_t chunk = 0; chunk * kOptimizerChunk < numel; ++chunk) {
        for (int thread = 0; thread < threads; ++thread) {
            const Share share = make_share(numel, chunk, thread, threads, aligned);
            share.each([&](int64_t at, auto width) {
                for (int k = 0; k < decltype(width)::value; ++k) ++visits[at + k];
            });
            sum += sum_of_squares(values, share);
        }
    }
    return sum;
}

// Of one chunk, with a tree in place of the block's.
float harness_squares(const char* dtype, const void* values, int64_t numel, int threads) {
    std::vector<float> sums;
    for (int thread = 0; thread < threads; ++thread) {
        const Share share = make_share(numel, 0, thread, threads, false);
        sums.push_back(dtype[0] == 'f'   ? sum_of_squares(static_cast<const float*>(values), share)
                       : dtype[0] == 'h' ? sum_of_squares(static_cast<const Half*>(values), share)
                                         : sum_of_squares(static_cast<const BFloat16*>(values), share));
    }
    for (size_t width = sums.size() / 2; width > 0; width /= 2) {
        for (size_t i = 0; i < width; ++i) sums[i] += sums[i + width];
    }
    return sums[0];
}

void harness_bias_correction(double beta1, double beta2, float step, float* out) {
    const BiasCorrection bias = bias_correction(make_rule(beta1, beta2, 0, 0, true, true, 0, 1), step);
    out[0] = bias.m;
    out[1] = bias.v;
}

float harness_trust_ratio(float weight_squares, float update_squares, double lowest, double highest) {
    return trust_ratio(make_rule(0.9, 0.999, 0, 0, true, true, lowest, highest), weight_squares, update_squares);
}

float harness_clip_factor(float norm, float max_norm) { return clip_factor(norm, max_norm); }

// kind: w(arp), s(hort), l(ong), x (wide): a row in its lanes' registers; t: read twice; u: and by single elements.
void harness_cross_entropy(char kind, char dtype, const void* logits, void* grad, int64_t stride, int64_t grad_stride,
                           const int64_t* labels, int64_t rows, int64_t classes, float smoothing, float z_loss,
                           float scale, float* losses, float* statistics) {
    const auto run = dtype == 'f' ? cross_entropy<float> : dtype == 'h' ? cross_entropy<Half> : cross_entropy<BFloat16>;
    run(kind, logits, grad, stride, grad_stride, labels, rows, classes, smoothing, z_loss, scale, losses, statistics);
}

// Bytes of a row that the ways w, s, l and x can hold.
void harness_resident_bytes(int64_t* out) {
    const Sharing all[] = {kWarpRow, kShortRow, kLongRow, kWideRow};
    for (int i = 0; i < 4; ++i) out[i] = resident_bytes(all[i]);
}

int64_t harness_tiles(int64_t batch, int64_t seqlen, int64_t chunk, int64_t* tile) {
    const Tiling tiling = make_tiling(batch, seqlen, chunk);
    *tile = tiling.tile;
    return tiling.tiles;
}

// As the four launches of unpad_cuda.
void harness_unpad(const uint8_t* mask, int64_t batch, int64_t seqlen, int threads, int64_t* indices,
                   int32_t* cu_seqlens, int64_t* stats) {
    const int64_t chunk = static_cast<int64_t>(threads) * kMaskBytes;
    const Tiling tiling = make_tiling(batch, seqlen, chunk);
    std::vector<int64_t> counts(static_cast<size_t>(tiling.tiles));
    for (int64_t tile = 0; tile < tiling.tiles; ++tile) {
        for (int64_t first = tile * tiling.tile; first < (tile + 1) * tiling.tile; first += kMaskBytes) {
            counts[tile] += count_bits(visible_bits(mask, first, tiling.positions, false));
        }
    }
    int64_t total = 0;
    for (int64_t tile = 0; tile < tiling.tiles; ++tile) {
        const int64_t begin = tile * tiling.tile, end = std::min(begin + tiling.tile, tiling.positions);
        pack_range(mask, tiling, threads, seqlen, begin, end, total, indices, cu_seqlens);
        total += counts[tile];
    }
    cu_seqlens[batch] = clamp_to_int32(total);
    stats[0] = total;
    stats[1] = 0;
    for (int64_t row = 0; row < batch; ++row) {
        stats[1] = std::max<int64_t>(stats[1], cu_seqlens[row + 1] - cu_seqlens[row]);
    }
}

uint32_t harness_nonzero_bytes(uint32_t word) { return nonzero_bytes(word); }

void harness_philox(const uint32_t* counter, uint64_t key, uint32_t* words) {
    const PhiloxWords got = philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key);
    std::copy_n(got.words, 4, words);
}

int32_t harness_clamp(int64_t x) { return clamp_to_int32(x); }

// The row starts a thread writes whose first position is far beyond 2^31.
void harness_row_starts(uint32_t bits, int64_t first, int64_t before, int64_t positions, int64_t seqlen, int64_t base,
                        int32_t* cu_seqlens) {
    write_row_starts(bits, first, before, positions, seqlen, cu_seqlens - base);
}

// x [n] as dropout leaves the elements first .. first + n - 1 of its mask, by vectors of 1, 4 or 8.
void harness_dropout(int vec, int64_t seed, int32_t site, uint32_t threshold, float scale, int64_t first, float* x,
                     int64_t n) {
    const DropoutMask mask = Dropout{&seed, static_cast<uint32_t>(site), threshold, scale}.mask();
    const auto run = [&](auto& values) {
        constexpr int kVec = sizeof values / sizeof(float);
        for (int64_t i = 0; i + kVec <= n; i += kVec) {
            std::copy(x + i, x + i + kVec, values);
            mask.apply(values, first + i);
            std::copy(values, values + kVec, x + i);
        }
    };
    float one[1], four[4], eight[8];
    vec == 1 ? run(one) : vec == 4 ? run(four) : run(eight);
}

void harness_to_float(const char* type, const uint16_t* bits, float* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = type[0] == 'h' ? to_float(Half{bits[i]}) : to_float(BFloat16{bits[i]});
}

void harness_from_float(const char* type, const float* x, uint16_t* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        out[i] = type[0] == 'h' ? from_float<Half>(x[i]).bits : from_float<BFloat16>(x[i]).bits;
    }
}

// kind: "wv" and "ws" (a warp per row, vector and scalar), "bv" and "bs" (a block per row), "s" (streamed).
// sizes: tokens, hidden, vocab, positions, types. dtype: f(loat), h(alf), b(float16).
int harness_embedding(const char* kind, const char* dtype, const int64_t* ids, const int64_t* types,
                      const int64_t* positions, const void* word, const void* position, const void* type,
                      const void* gamma, const void* beta, void* out, float* mean, float* rstd, const int64_t* sizes,
                      float eps, int32_t* bad_id) {
    const auto run = dtype[0] == 'f' ? embedding<float> : dtype[0] == 'h' ? embedding<Half> : embedding<BFloat16>;
    return run(kind, ids, types, positions, word, position, type, gamma, beta, out, mean, rstd, sizes, eps, bad_id);
}
}
