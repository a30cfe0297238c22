// Host code that inference and packing use.
#pragma once

#include <string>
#include <tuple>

#include "bindings/common.h"
#include "host/attention.h"
#include "host/checks.h"
#include "host/fingerprint.h"
#include "host/packing.h"
#include "host/quantized_rows.h"

namespace bert_fast::bindings {

using Rows = std::tuple<Address, int64_t, int64_t>;

inline bert_fast::RowsOfHeads rows_of_heads(const Rows& x) {
    return {at<char>(std::get<0>(x)), std::get<1>(x), std::get<2>(x)};
}

using Bias = std::tuple<Address, int64_t, int64_t, int64_t>;

inline bert_fast::ScoreBias score_bias(const Bias& x) {
    return {at<const float>(std::get<0>(x)), std::get<1>(x), std::get<2>(x), std::get<3>(x)};
}

inline bert_fast::HostDType host_dtype_named(const std::string& name) {
    if (name == "float32") return bert_fast::HostDType::kFloat32;
    if (name == "bfloat16") return bert_fast::HostDType::kBFloat16;
    throw std::invalid_argument("dtype must be float32 or bfloat16, got " + name);
}

inline bert_fast::RowActivation row_activation_named(const std::string& name) {
    if (name == "none") return bert_fast::RowActivation::kNone;
    if (name == "gelu") return bert_fast::RowActivation::kGelu;
    if (name == "gelu_tanh") return bert_fast::RowActivation::kGeluTanh;
    throw std::invalid_argument("activation must be none, gelu or gelu_tanh, got " + name);
}

inline void bind_host(py::module_& m) {
    m.def(
        "unpad",
        [](Address mask, int64_t batch, int64_t seqlen, Address indices, Address cu_seqlens) {
            return bert_fast::unpad(at<const uint8_t>(mask), batch, seqlen, at<int64_t>(indices),
                                    at<int32_t>(cu_seqlens));
        },
        py::arg("mask"), py::arg("batch"), py::arg("seqlen"), py::arg("indices"), py::arg("cu_seqlens"), NoGil(),
        "mask bytes [B, S] -> indices int64 [B * S], cu_seqlens int32 [B + 1]; returns (total, max_seqlen)");
    m.def(
        "token_budget_batches",
        [](Address lengths, int64_t n, int64_t max_tokens, int64_t max_sequences, Address order, Address offsets) {
            return bert_fast::token_budget_batches(at<const int64_t>(lengths), n, max_tokens, max_sequences,
                                                   at<int64_t>(order), at<int64_t>(offsets));
        },
        py::arg("lengths"), py::arg("n"), py::arg("max_tokens"), py::arg("max_sequences"), py::arg("order"),
        py::arg("offsets"), NoGil(),
        "lengths int64 [n] -> order int64 [n] (longest first), offsets int64 [n + 1]; returns the number of batches");
    m.def("fingerprint", &bert_fast::fingerprint, py::arg("pointers"), py::arg("nbytes"), py::arg("samples"), NoGil(),
          "64-bit hash of the buffers' sizes and of `samples` evenly spaced 8-byte words of each");
    m.def("attention_instructions", &bert_fast::attention_instructions,
          "the vector instructions that `attention` uses here: avx512, avx2, or nothing where it cannot run");
    m.def(
        "attention",
        [](const Rows& q, const Rows& k, const Rows& v, const Rows& out, Address cu_seqlens, int64_t batch,
           int64_t heads, int64_t head_dim, Address key_mask, const Bias& bias, int64_t window, float scale,
           const std::string& dtype, int threads, Address parallel, const std::string& instructions) {
            bert_fast::attention({rows_of_heads(q), rows_of_heads(k), rows_of_heads(v), rows_of_heads(out),
                                  at<const int32_t>(cu_seqlens), batch, heads, head_dim, at<const uint8_t>(key_mask),
                                  score_bias(bias), window, scale, host_dtype_named(dtype)},
                                 threads, reinterpret_cast<bert_fast::ParallelFunction>(parallel), instructions);
        },
        py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("cu_seqlens"), py::arg("batch"),
        py::arg("heads"), py::arg("head_dim"), py::arg("key_mask"), py::arg("bias"), py::arg("window"),
        py::arg("scale"), py::arg("dtype"), py::arg("threads"), py::arg("parallel"), py::arg("instructions"), NoGil(),
        "softmax(scale q k^T + bias) v within each sequence; q, k, v, out [T, N, D] as (address, bytes from row to row, "
        "from head to head); bias float32 [B or 1, N or 1, S, S] as (address or 0, elements from sequence to sequence, "
        "from head to head, from query to query); window: how far a seen key may lie, or -1; parallel: the address of "
        "GOMP_parallel, 0 with one thread");
    m.def("quantized_rows_reason", &bert_fast::quantized_rows_reason,
          "why int8 products cannot run here; empty if they can");
    m.def(
        "quantized_rows",
        [](Address x, const std::string& x_dtype, int64_t rows, int64_t width,
           const std::tuple<Address, Address, Address, Address>& product, Address residual,
           const std::string& activation, const std::tuple<Address, Address, float>& norm, Address out,
           const std::string& out_dtype, const std::tuple<Address, Address, Address>& quantized, int threads,
           Address parallel) {
            const auto [scale, least, column_sums, bias] = product;
            const auto [weight, shift, eps] = norm;
            const auto [codes, steps, lows] = quantized;
            bert_fast::quantized_rows(
                {at<const void>(x), host_dtype_named(x_dtype), rows, width, at<const float>(scale),
                 at<const float>(least), at<const float>(column_sums), at<const float>(bias),
                 at<const float>(residual), row_activation_named(activation), at<const float>(weight),
                 at<const float>(shift), eps, at<void>(out), host_dtype_named(out_dtype), at<uint8_t>(codes),
                 at<float>(steps), at<float>(lows)},
                threads, reinterpret_cast<bert_fast::ParallelFunction>(parallel));
        },
        py::arg("x"), py::arg("x_dtype"), py::arg("rows"), py::arg("width"), py::arg("product"), py::arg("residual"),
        py::arg("activation"), py::arg("norm"), py::arg("out"), py::arg("out_dtype"), py::arg("quantized"),
        py::arg("threads"), py::arg("parallel"), NoGil(),
        "what lies between two int8 products, in one pass: see csrc/host/quantized_rows.h. product: addresses of the "
        "rows' scale and least [T], column_sums and bias [width]; norm: of weight and bias [width], and eps; quantized: "
        "of bytes [T, width], scale and least [T]; 0 for what there is not");
}

}  // namespace bert_fast::bindings
