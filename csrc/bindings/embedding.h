// The gathers of an embedding layer, and their gradients.
#pragma once

#include <array>
#include <string>
#include <tuple>

#include "bindings/common.h"
#include "bindings/dtype.h"

namespace bert_fast::bindings {

// The tensors and sizes that forward and backward share, in the order of _inputs in bert_fast/ops/embedding.py.
using EmbeddingTuple = std::tuple<Address, Address, Address, Address, Address, Address, Address, int64_t, int64_t,
                                  int64_t, int64_t, int64_t, std::string, Address, double, int64_t>;

inline bert_fast::EmbeddingInputs embedding_inputs(const EmbeddingTuple& given) {
    const auto& [input_ids, token_type_ids, position_ids, word, position, type, gamma, tokens, hidden, vocab, positions,
                 types, dtype, seed, p, site] = given;
    return {at<const int64_t>(input_ids), at<const int64_t>(token_type_ids), at<const int64_t>(position_ids),
            at<const void>(word), at<const void>(position), at<const void>(type), at<const void>(gamma),
            tokens, hidden, vocab, positions, types, dtype_named(dtype), {at<const int64_t>(seed), p, site}};
}

inline void bind_embedding(py::module_& m) {
    m.def(
        "embedding_layer_norm_cuda",
        [](const EmbeddingTuple& inputs, Address beta, float eps, Address out, Address mean, Address rstd,
           Address bad_id, int device, Address stream) {
            bert_fast::embedding_layer_norm_cuda(embedding_inputs(inputs), at<const void>(beta), eps, at<void>(out),
                                                 at<float>(mean), at<float>(rstd), at<int32_t>(bad_id), device,
                                                 at<void>(stream));
        },
        py::arg("inputs"), py::arg("beta"), py::arg("eps"), py::arg("out"), py::arg("mean"), py::arg("rstd"),
        py::arg("bad_id"), py::arg("device"), py::arg("stream"), NoGil(),
        "LayerNorm of the sum of three gathered rows, and dropout; inputs: (input_ids, token_type_ids, position_ids, "
        "word, position, type, gamma, tokens, hidden, vocab, positions, types, dtype, seed, p, site)");
    m.def("embedding_layer_norm_backward_cuda_workspace", &bert_fast::embedding_layer_norm_backward_cuda_workspace,
          py::arg("tokens"), py::arg("hidden"), NoGil(), "bytes that embedding_layer_norm_backward_cuda needs");
    m.def(
        "embedding_layer_norm_backward_cuda",
        [](const EmbeddingTuple& inputs, Address dy, Address mean, Address rstd, Address d_sum, Address d_gamma,
           Address d_beta, Address d_type, const std::array<Address, 3>& tables, int64_t skip, Address workspace,
           int64_t workspace_bytes, int device, Address stream) {
            bert_fast::embedding_layer_norm_backward_cuda(
                embedding_inputs(inputs), at<const void>(dy), at<const float>(mean), at<const float>(rstd),
                {at<void>(d_sum), at<void>(d_gamma), at<void>(d_beta), at<void>(d_type),
                 {at<float>(tables[0]), at<float>(tables[1]), at<float>(tables[2])}, skip},
                at<void>(workspace), workspace_bytes, device, at<void>(stream));
        },
        py::arg("inputs"), py::arg("dy"), py::arg("mean"), py::arg("rstd"), py::arg("d_sum"), py::arg("d_gamma"),
        py::arg("d_beta"), py::arg("d_type"), py::arg("tables"), py::arg("skip"), py::arg("workspace"),
        py::arg("workspace_bytes"), py::arg("device"), py::arg("stream"), NoGil(),
        "gradients of gamma, beta and up to two type rows; of the gathered sum as rows d_sum, or, where that is 0, added "
        "to float32 tables (word, position, type; 0: not wanted), but for row `skip` of the first");
    m.def("sum_rows_by_id_cuda_workspace", &bert_fast::sum_rows_by_id_cuda_workspace, py::arg("tokens"),
          py::arg("hidden"), NoGil(), "bytes of workspace that sum_rows_by_id_cuda needs");
    m.def(
        "sum_rows_by_id_cuda",
        [](Address x, Address ids, Address order, int64_t tokens, int64_t hidden, int64_t rows, int64_t skip,
           const std::string& dtype, Address out, Address workspace, int64_t workspace_bytes, int device,
           Address stream) {
            bert_fast::sum_rows_by_id_cuda(at<const void>(x), at<const int64_t>(ids), at<const int64_t>(order), tokens,
                                           hidden, rows, skip, dtype_named(dtype), at<void>(out), at<void>(workspace),
                                           workspace_bytes, device, at<void>(stream));
        },
        py::arg("x"), py::arg("ids"), py::arg("order"), py::arg("tokens"), py::arg("hidden"), py::arg("rows"),
        py::arg("skip"), py::arg("dtype"), py::arg("out"), py::arg("workspace"), py::arg("workspace_bytes"),
        py::arg("device"), py::arg("stream"), NoGil(), "the sums of rows [T, H] that share an id: [rows, H]");
}

}  // namespace bert_fast::bindings
