// LAMB and Adam over many tensors.
#pragma once

#include <string>
#include <vector>

#include "bindings/common.h"
#include "bindings/dtype.h"

namespace bert_fast::bindings {

inline std::vector<bert_fast::TensorAddresses> tensors_at(const std::vector<Address>& flat) {
    constexpr size_t kFields = 7;
    if (flat.size() % kFields != 0) throw std::invalid_argument("tensors must hold 7 numbers for each tensor");
    std::vector<bert_fast::TensorAddresses> tensors;
    for (const Address* t = flat.data(); t != flat.data() + flat.size(); t += kFields) {
        tensors.push_back({at<const void>(t[0]), at<void>(t[1]), at<float>(t[2]), at<void>(t[3]), at<float>(t[4]),
                           at<const float>(t[5]), static_cast<int64_t>(t[6])});
    }
    return tensors;
}

inline void bind_optimizer(py::module_& m) {
    m.def("optimizer_chunk", &bert_fast::optimizer_chunk, "elements of a tensor behind one partial sum");
    m.def(
        "square_gradients_cuda",
        [](const std::vector<Address>& tensors, const std::string& dtype, Address partials, int device,
           Address stream) {
            bert_fast::square_gradients_cuda(tensors_at(tensors), dtype_named(dtype), at<float>(partials), device,
                                             at<void>(stream));
        },
        py::arg("tensors"), py::arg("dtype"), py::arg("partials"), py::arg("device"), py::arg("stream"), NoGil(),
        "partials float32 [chunks] = sums of squares of gradients; tensors as for adam_cuda");
    m.def(
        "clip_factor_cuda",
        [](Address partials, int64_t count, float max_norm, Address grad_scale, Address out, int device,
           Address stream) {
            bert_fast::clip_factor_cuda(at<const float>(partials), count, max_norm, at<const float>(grad_scale),
                                        at<float>(out), device, at<void>(stream));
        },
        py::arg("partials"), py::arg("count"), py::arg("max_norm"), py::arg("grad_scale"), py::arg("out"),
        py::arg("device"), py::arg("stream"), NoGil(), "out float32 [2] = (norm, factor for the gradients)");
    m.def(
        "adam_cuda",
        [](const std::vector<Address>& tensors, double beta1, double beta2, double eps, double weight_decay,
           bool bias_correction, bool decoupled, double lowest, double highest, Address lr_pointer, float lr,
           Address grad_factor, Address found_inf, bool adapt, Address squares, const std::string& dtype,
           const std::string& moment, int device, Address stream) {
            bert_fast::adam_cuda(
                tensors_at(tensors),
                bert_fast::make_rule(beta1, beta2, eps, weight_decay, bias_correction, decoupled, lowest, highest),
                {at<const float>(lr_pointer), lr, at<const float>(grad_factor), at<const float>(found_inf)}, adapt,
                at<float>(squares), dtype_named(dtype), dtype_named(moment), device, at<void>(stream));
        },
        py::arg("tensors"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
        py::arg("bias_correction"), py::arg("decoupled"), py::arg("lowest"), py::arg("highest"), py::arg("lr_pointer"),
        py::arg("lr"), py::arg("grad_factor"), py::arg("found_inf"), py::arg("adapt"), py::arg("squares"),
        py::arg("dtype"), py::arg("moment"), py::arg("device"), py::arg("stream"), NoGil(),
        "a step of LAMB (adapt) or Adam; tensors: grad, param, master or 0, exp_avg, exp_avg_sq, step, numel of each");
}

}  // namespace bert_fast::bindings
