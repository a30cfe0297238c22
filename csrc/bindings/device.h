// Whether CUDA can be used, and unpadding.
#pragma once

#include <optional>
#include <string>

#include "bindings/common.h"
#include "cuda/api.h"

namespace bert_fast::bindings {

inline void bind_device(py::module_& m) {
    m.def(
        "cuda_status",
        [](int device) -> std::optional<std::string> {
            const std::string reason = bert_fast::cuda_status(device);
            if (reason.empty()) return std::nullopt;
            return reason;
        },
        py::arg("device") = -1, NoGil(), "None if CUDA can be used, else why not; a device also checks code for it");
    m.def("unpad_cuda_workspace", &bert_fast::unpad_cuda_workspace, py::arg("batch"), py::arg("seqlen"), NoGil(),
          "bytes of workspace that unpad_cuda needs");
    m.def(
        "unpad_cuda",
        [](Address mask, int64_t batch, int64_t seqlen, Address indices, Address cu_seqlens, Address stats,
           Address workspace, int64_t workspace_bytes, int device, Address stream) {
            bert_fast::unpad_cuda(at<const uint8_t>(mask), batch, seqlen, at<int64_t>(indices), at<int32_t>(cu_seqlens),
                                  at<int64_t>(stats), at<void>(workspace), workspace_bytes, device, at<void>(stream));
        },
        py::arg("mask"), py::arg("batch"), py::arg("seqlen"), py::arg("indices"), py::arg("cu_seqlens"),
        py::arg("stats"), py::arg("workspace"), py::arg("workspace_bytes"), py::arg("device"), py::arg("stream"),
        NoGil(), "as unpad, on a device: stats int64 [2] = (total, max_seqlen)");
}

}  // namespace bert_fast::bindings
