// Rows into and out of padding, and pooling.
#pragma once

#include <string>

#include "bindings/common.h"
#include "bindings/dtype.h"

namespace bert_fast::bindings {

inline void bind_rows(py::module_& m) {
    m.def(
        "gather_rows_cuda",
        [](Address from, int64_t places, Address indices, int64_t tokens, Address to, int64_t row_bytes, int device,
           Address stream) {
            bert_fast::gather_rows_cuda(at<const void>(from), places, at<const int64_t>(indices), tokens, at<void>(to),
                                        row_bytes, device, at<void>(stream));
        },
        py::arg("from"), py::arg("places"), py::arg("indices"), py::arg("tokens"), py::arg("to"), py::arg("row_bytes"),
        py::arg("device"), py::arg("stream"), NoGil(), "rows of [places, row_bytes] -> [tokens, row_bytes]");
    m.def(
        "scatter_rows_cuda",
        [](Address from, Address indices, int64_t tokens, Address to, int64_t places, int64_t row_bytes, int device,
           Address stream) {
            bert_fast::scatter_rows_cuda(at<const void>(from), at<const int64_t>(indices), tokens, at<void>(to), places,
                                         row_bytes, device, at<void>(stream));
        },
        py::arg("from"), py::arg("indices"), py::arg("tokens"), py::arg("to"), py::arg("places"), py::arg("row_bytes"),
        py::arg("device"), py::arg("stream"), NoGil(), "rows to ascending places of [places, row_bytes], zeros elsewhere");
    m.def(
        "pool_cuda",
        [](Address x, Address cu_seqlens, int64_t tokens, int64_t sequences, int64_t hidden, int mode, bool normalize,
           const std::string& dtype, Address out, Address places, Address scales, int device, Address stream) {
            bert_fast::pool_cuda(at<const void>(x), at<const int32_t>(cu_seqlens), {tokens, sequences, hidden}, mode,
                                 normalize, dtype_named(dtype), {at<float>(out), at<int32_t>(places), at<float>(scales)},
                                 device, at<void>(stream));
        },
        py::arg("x"), py::arg("cu_seqlens"), py::arg("tokens"), py::arg("sequences"), py::arg("hidden"),
        py::arg("mode"), py::arg("normalize"), py::arg("dtype"), py::arg("out"), py::arg("places"), py::arg("scales"),
        py::arg("device"), py::arg("stream"), NoGil(), "one float32 vector per sequence: mode 0 mean, 1 max, 2 first");
    m.def(
        "pool_backward_cuda",
        [](Address dy, Address cu_seqlens, int64_t tokens, int64_t sequences, int64_t hidden, int mode, bool normalize,
           const std::string& dtype, Address out, Address places, Address scales, Address dx, int device,
           Address stream) {
            bert_fast::pool_backward_cuda(at<const float>(dy), at<const int32_t>(cu_seqlens),
                                          {tokens, sequences, hidden}, mode, normalize, dtype_named(dtype),
                                          {at<float>(out), at<int32_t>(places), at<float>(scales)}, at<void>(dx), device,
                                          at<void>(stream));
        },
        py::arg("dy"), py::arg("cu_seqlens"), py::arg("tokens"), py::arg("sequences"), py::arg("hidden"),
        py::arg("mode"), py::arg("normalize"), py::arg("dtype"), py::arg("out"), py::arg("places"), py::arg("scales"),
        py::arg("dx"), py::arg("device"), py::arg("stream"), NoGil(), "the gradient of pool_cuda, with what it saved");
}

}  // namespace bert_fast::bindings
