// The single list of what bert_fast._C exports, and the facts of its build.
#include <string>

#include "bindings/common.h"
#include "bindings/host.h"
#include "bindings/training.h"
#ifdef BERT_FAST_NVCC
#include "bindings/cross_entropy.h"
#include "bindings/device.h"
#include "bindings/embedding.h"
#include "bindings/optimizer.h"
#include "bindings/rows.h"
#endif

namespace py = pybind11;
using namespace bert_fast::bindings;

namespace {

// Raise it with every change of a signature below; bert_fast/extension.py refuses an extension of another number.
constexpr int kInterface = 6;

py::dict build_info() {
    py::dict info;
    info["version"] = BERT_FAST_VERSION;
    info["made_for"] = BERT_FAST_MADE_FOR;
#ifdef __clang__
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
#ifdef BERT_FAST_NVCC
    info["cuda"] = true;
    info["nvcc"] = BERT_FAST_NVCC;
    info["archs"] = py::str(BERT_FAST_ARCHS).attr("split")();
#else
    info["cuda"] = false;
    info["nvcc"] = py::none();
    info["archs"] = py::list();
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "The compiled part of bert_fast. See bert_fast/extension.py.";
    m.attr("INTERFACE") = kInterface;
    m.def("build_info", &build_info, "version, compiler, cuda, nvcc and archs of this build");
    bind_host(m);
    bind_training(m);
#ifdef BERT_FAST_NVCC
    bind_device(m);
    bind_embedding(m);
    bind_rows(m);
    bind_cross_entropy(m);
    bind_optimizer(m);
#endif
}
