// Host code for the data of pre-training.
#pragma once

#include "bindings/common.h"
#include "host/masking.h"
#include "host/pairing.h"
#include "host/windows.h"

namespace bert_fast::bindings {

template <typename Id>
inline void bind_ids_of_a_width(py::module_& m) {
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

inline void bind_training(py::module_& m) {
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

}  // namespace bert_fast::bindings
