// The loss over a vocabulary.
#pragma once

#include <string>

#include "bindings/common.h"
#include "bindings/dtype.h"

namespace bert_fast::bindings {

inline void bind_cross_entropy(py::module_& m) {
    m.def(
        "cross_entropy_cuda",
        [](Address logits, Address labels, Address known, Address upstream, Address inverse_count, Address losses,
           Address statistics, Address grad, int64_t rows, int64_t classes, int64_t logits_stride, int64_t grad_stride,
           int64_t upstream_stride, int64_t ignore_index, float smoothing, float z_loss, float factor, bool skip_ones,
           const std::string& dtype, Address bad_id, int device, Address stream) {
            bert_fast::cross_entropy_cuda(
                {at<const void>(logits), at<const int64_t>(labels), at<const float>(known),
                 at<const float>(upstream), at<const float>(inverse_count), at<float>(losses), at<float>(statistics),
                 at<void>(grad), rows, classes, logits_stride, grad_stride, upstream_stride, ignore_index, smoothing,
                 z_loss, factor, skip_ones, at<int32_t>(bad_id)},
                dtype_named(dtype), device, at<void>(stream));
        },
        py::kw_only(), py::arg("logits"), py::arg("labels"), py::arg("known"), py::arg("upstream"),
        py::arg("inverse_count"), py::arg("losses"), py::arg("statistics"), py::arg("grad"), py::arg("rows"),
        py::arg("classes"), py::arg("logits_stride"), py::arg("grad_stride"), py::arg("upstream_stride"),
        py::arg("ignore_index"), py::arg("smoothing"), py::arg("z_loss"), py::arg("factor"), py::arg("skip_ones"),
        py::arg("dtype"), py::arg("bad_id"), py::arg("device"), py::arg("stream"), NoGil(),
        "losses, statistics and gradient of R rows of V logits, each where its pointer is not 0; see cuda/api.h");
    m.def(
        "cross_entropy_count_cuda",
        [](Address labels, int64_t rows, int64_t ignore_index, Address inverse_count, int device, Address stream) {
            bert_fast::cross_entropy_count_cuda(at<const int64_t>(labels), rows, ignore_index,
                                                at<float>(inverse_count), device, at<void>(stream));
        },
        py::arg("labels"), py::arg("rows"), py::arg("ignore_index"), py::arg("inverse_count"), py::arg("device"),
        py::arg("stream"), NoGil(), "inverse_count float32 [1] = 1 / labels that are not ignored, at least 1");
    m.def(
        "cross_entropy_sum_cuda",
        [](Address losses, int64_t rows, Address inverse_count, Address out, int device, Address stream) {
            bert_fast::cross_entropy_sum_cuda(at<const float>(losses), rows, at<const float>(inverse_count),
                                              at<float>(out), device, at<void>(stream));
        },
        py::arg("losses"), py::arg("rows"), py::arg("inverse_count"), py::arg("out"), py::arg("device"),
        py::arg("stream"), NoGil(), "out float32 [1] = sum of losses [R] * inverse_count [1], if that is not 0");
}

}  // namespace bert_fast::bindings
