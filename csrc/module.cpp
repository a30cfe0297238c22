// The single list of what bert_fast._C exports, and the facts of its build. Pointers arrive as integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "host/attention.h"
#include "host/checks.h"
#include "host/fingerprint.h"
#include "host/masking.h"
#include "host/packing.h"
#include "host/pairing.h"
#include "host/windows.h"
#ifdef BERT_FAST_NVCC
#include "cuda/api.h"
#endif

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using NoGil = py::call_guard<py::gil_scoped_release>;

// Raise it with every change of a signature below; bert_fast/extension.py refuses an extension of another number.
constexpr int kInterface = 3;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

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

using Rows = std::tuple<Address, int64_t, int64_t>;

bert_fast::RowsOfHeads rows_of_heads(const Rows& x) {
    return {at<char>(std::get<0>(x)), std::get<1>(x), std::get<2>(x)};
}

bert_fast::HostDType host_dtype_named(const std::string& name) {
    if (name == "float32") return bert_fast::HostDType::kFloat32;
    if (name == "bfloat16") return bert_fast::HostDType::kBFloat16;
    throw std::invalid_argument("dtype must be float32 or bfloat16, got " + name);
}

void bind_host(py::module_& m) {
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
           int64_t heads, int64_t head_dim, Address key_mask, float scale, const std::string& dtype, int threads,
           Address parallel, const std::string& instructions) {
            bert_fast::attention({rows_of_heads(q), rows_of_heads(k), rows_of_heads(v), rows_of_heads(out),
                                  at<const int32_t>(cu_seqlens), batch, heads, head_dim, at<const uint8_t>(key_mask),
                                  scale, host_dtype_named(dtype)},
                                 threads, reinterpret_cast<bert_fast::ParallelFunction>(parallel), instructions);
        },
        py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("cu_seqlens"), py::arg("batch"),
        py::arg("heads"), py::arg("head_dim"), py::arg("key_mask"), py::arg("scale"), py::arg("dtype"),
        py::arg("threads"), py::arg("parallel"), py::arg("instructions"), NoGil(),
        "softmax(scale q k^T) v within each sequence; q, k, v, out [T, N, D] as (address, bytes from row to row, from "
        "head to head); parallel: the address of GOMP_parallel, 0 with one thread");
}

template <typename Id>
void bind_ids_of_a_width(py::module_& m) {
    const std::string bits = std::to_string(8 * sizeof(Id));
    m.def(
        ("mask_tokens_int" + bits).c_str(),
        [](Address ids, Address cu_seqlens, int64_t sequences, Address indices, Address special, Address kinds,
           int64_t vocab, int64_t mask_id, double probability, int64_t max_predictions, uint64_t seed, uint32_t pass,
           Address masked, Address labels) {
            bert_fast::mask_tokens<Id>(at<const Id>(ids), at<const int64_t>(cu_seqlens), sequences,
                                       at<const int64_t>(indices), at<const uint8_t>(special),
                                       {at<const uint8_t>(kinds), vocab, mask_id, probability, max_predictions},
                                       {seed, pass}, at<Id>(masked), at<Id>(labels));
        },
        py::arg("ids"), py::arg("cu_seqlens"), py::arg("sequences"), py::arg("indices"), py::arg("special"),
        py::arg("kinds"), py::arg("vocab"), py::arg("mask_id"), py::arg("probability"), py::arg("max_predictions"),
        py::arg("seed"), py::arg("pass"), py::arg("masked"), py::arg("labels"), NoGil(),
        "ids [T], cu_seqlens int64 [B + 1], indices int64 [B], special bytes [T] or 0, kinds bytes [vocab] (1 special, "
        "2 continues a word) -> masked [T], labels [T]; max_predictions below 0: each word by itself");
    m.def(
        ("pack_pairs_int" + bits).c_str(),
        [](Address tokens, Address ranges, int64_t n, int64_t cls_id, int64_t sep_id, Address out, Address types) {
            bert_fast::pack_pairs<Id>(at<const Id>(tokens), at<const bert_fast::PairRange>(ranges), n, cls_id, sep_id,
                                      at<Id>(out), at<Id>(types));
        },
        py::arg("tokens"), py::arg("ranges"), py::arg("n"), py::arg("cls_id"), py::arg("sep_id"), py::arg("out"),
        py::arg("types"), NoGil(), "ranges int64 [n, 4] of tokens -> [CLS] A [SEP] B [SEP], and token types");
}

void bind_training(py::module_& m) {
    bind_ids_of_a_width<int32_t>(m);
    bind_ids_of_a_width<int64_t>(m);
    m.def(
        "pair_sentences",
        [](Address sentence_offsets, Address document_offsets, int64_t documents, Address chosen, int64_t n,
           int64_t max_tokens, double short_probability, uint64_t seed, uint32_t pass, Address ranges,
           Address is_random, Address counts) {
            return bert_fast::pair_sentences(
                {at<const int64_t>(sentence_offsets), at<const int64_t>(document_offsets), documents},
                at<const int64_t>(chosen), n, {max_tokens, short_probability}, {seed, pass},
                at<bert_fast::PairRange>(ranges), at<int64_t>(is_random), at<int64_t>(counts));
        },
        py::arg("sentence_offsets"), py::arg("document_offsets"), py::arg("documents"), py::arg("chosen"),
        py::arg("n"), py::arg("max_tokens"), py::arg("short_probability"), py::arg("seed"), py::arg("pass"),
        py::arg("ranges"), py::arg("is_random"), py::arg("counts"), NoGil(),
        "offsets int64, chosen int64 [n] -> ranges int64 [*, 4], is_random int64 [*], counts int64 [n]; returns pairs");
    m.def(
        "pack_windows",
        [](Address lengths, int64_t n, int64_t window, Address order, Address offsets) {
            return bert_fast::pack_windows(at<const int64_t>(lengths), n, window, at<int64_t>(order),
                                           at<int64_t>(offsets));
        },
        py::arg("lengths"), py::arg("n"), py::arg("window"), py::arg("order"), py::arg("offsets"), NoGil(),
        "lengths int64 [n] -> order int64 [n], offsets int64 [n + 1]; returns the number of windows");
}

#ifdef BERT_FAST_NVCC
bert_fast::DType dtype_named(const std::string& name) {
    if (name == "float32") return bert_fast::DType::kFloat32;
    if (name == "float16") return bert_fast::DType::kFloat16;
    if (name == "bfloat16") return bert_fast::DType::kBFloat16;
    throw std::invalid_argument("dtype must be float32, float16 or bfloat16, got " + name);
}

// The tensors and sizes that forward and backward share, in the order of _EmbeddingCall in bert_fast/ops/embedding.py.
using EmbeddingTuple = std::tuple<Address, Address, Address, Address, Address, Address, Address, int64_t, int64_t,
                                  int64_t, int64_t, int64_t, std::string, Address, double, int64_t>;

bert_fast::EmbeddingInputs embedding_inputs(const EmbeddingTuple& given) {
    const auto& [input_ids, token_type_ids, position_ids, word, position, type, gamma, tokens, hidden, vocab, positions,
                 types, dtype, seed, p, site] = given;
    return {at<const int64_t>(input_ids), at<const int64_t>(token_type_ids), at<const int64_t>(position_ids),
            at<const void>(word), at<const void>(position), at<const void>(type), at<const void>(gamma),
            tokens, hidden, vocab, positions, types, dtype_named(dtype), {at<const int64_t>(seed), p, site}};
}

void bind_embedding(py::module_& m) {
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
           Address d_beta, Address d_type, Address workspace, int64_t workspace_bytes, int device, Address stream) {
            bert_fast::embedding_layer_norm_backward_cuda(
                embedding_inputs(inputs), at<const void>(dy), at<const float>(mean), at<const float>(rstd),
                {at<void>(d_sum), at<void>(d_gamma), at<void>(d_beta), at<void>(d_type)}, at<void>(workspace),
                workspace_bytes, device, at<void>(stream));
        },
        py::arg("inputs"), py::arg("dy"), py::arg("mean"), py::arg("rstd"), py::arg("d_sum"), py::arg("d_gamma"),
        py::arg("d_beta"), py::arg("d_type"), py::arg("workspace"), py::arg("workspace_bytes"), py::arg("device"),
        py::arg("stream"), NoGil(), "gradients of the gathered sum, of gamma, beta and up to two type rows");
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

void bind_rows(py::module_& m) {
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

std::vector<bert_fast::TensorAddresses> tensors_at(const std::vector<Address>& flat) {
    constexpr size_t kFields = 7;
    if (flat.size() % kFields != 0) throw std::invalid_argument("tensors must hold 7 numbers for each tensor");
    std::vector<bert_fast::TensorAddresses> tensors;
    for (const Address* t = flat.data(); t != flat.data() + flat.size(); t += kFields) {
        tensors.push_back({at<const void>(t[0]), at<void>(t[1]), at<float>(t[2]), at<void>(t[3]), at<float>(t[4]),
                           at<const float>(t[5]), static_cast<int64_t>(t[6])});
    }
    return tensors;
}

void bind_optimizer(py::module_& m) {
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

void bind_cross_entropy(py::module_& m) {
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

void bind_cuda(py::module_& m) {
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
    bind_embedding(m);
    bind_rows(m);
    bind_optimizer(m);
    bind_cross_entropy(m);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "The compiled part of bert_fast. See bert_fast/extension.py.";
    m.attr("INTERFACE") = kInterface;
    m.def("build_info", &build_info, "version, compiler, cuda, nvcc and archs of this build");
    bind_host(m);
    bind_training(m);
#ifdef BERT_FAST_NVCC
    bind_cuda(m);
#endif
}
