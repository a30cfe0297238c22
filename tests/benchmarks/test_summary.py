"""The table of targets: what it reads, how it scales to another GPU, and what it says where nothing was measured."""

import pytest

from benchmarks.gpu.plan import SECTIONS
from benchmarks.gpu.report import Report
from benchmarks.gpu.summary import DESIGN_COPY, DESIGN_MATMUL, TARGETS, summarise, table
from benchmarks.options import Options


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path, Options(), list(SECTIONS))


def put(report, label, *rows, status="ok"):
    report.items[label] = {"status": status, "rows": list(rows)}


def roofs(report, share=1.0):
    put(
        report,
        "kernels/roofs",
        {"roof": "copy", "bytes_per_s": share * DESIGN_COPY},
        {"roof": "matmul", "flops_per_s": share * DESIGN_MATMUL},
    )


def rows_of(report):
    return {row["title"]: row for row in summarise(report)}


def test_every_target_reads_an_item_of_the_plan():
    labels = {item.label for section in SECTIONS for item in section.items}
    assert {target.item for target in TARGETS} <= labels


def test_a_rate_is_held_against_the_design_scaled_by_the_roof_measured(report):
    put(report, "model/base 128", {"provider": "bert_fast, packed", "sequences_per_s": 13_000.0})
    roofs(report)
    title = "base, 128 tokens, packed"
    assert rows_of(report)[title]["verdict"] == "FAIL"
    roofs(report, share=0.5)
    assert rows_of(report)[title]["verdict"] == "PASS"
    assert rows_of(report)[title]["target"] == 12_500


def test_the_best_batch_counts_and_the_best_peer_stands_beside_it(report):
    roofs(report)
    put(
        report,
        "model/base 128",
        {"provider": "bert_fast, packed", "sequences_per_s": 20_000.0},
        {"provider": "bert_fast, packed", "sequences_per_s": 26_000.0},
        {"provider": "bert_fast, dense", "sequences_per_s": 99_000.0},
        {"provider": "transformers sdpa", "sequences_per_s": 9_000.0},
        {"provider": "transformers flash", "error": "no"},
    )
    row = rows_of(report)["base, 128 tokens, packed"]
    assert row["measured"] == 26_000
    assert row["best peer"] == ["transformers sdpa", 9_000.0]


def test_a_memory_bound_op_is_a_share_of_the_copy_of_the_same_run(report):
    roofs(report, share=0.7)
    us = 1e6 * 302e6 / (0.7 * DESIGN_COPY) / 0.96
    row = {"provider": "bert_fast", "direction": "forward", "bytes": 302e6, "flops": 0, "us": us}
    put(report, "kernels/dropout_add_layer_norm", row)
    found = rows_of(report)["dropout_add_layer_norm forward"]
    assert found["measured"] == pytest.approx(0.96)
    assert found["verdict"] == "PASS"


def test_attention_is_read_in_teraflops(report):
    roofs(report)
    row = {"provider": "bert_fast", "direction": "forward", "bytes": 1, "flops": 25.8e9, "us": 100.0}
    put(report, "kernels/attention S=128", row, row | {"provider": "sdpa flash", "us": 80.0})
    found = rows_of(report)["attention forward, S=128"]
    assert found["measured"] == pytest.approx(258)
    assert found["verdict"] == "PASS"
    assert found["best peer"][0] == "sdpa flash"


def test_a_latency_passes_from_below(report):
    roofs(report)
    row = {"provider": "bert_fast", "way": "CUDA graph"}
    put(report, "model/latency", {"provider": "bert_fast", "way": "eager, packed", "ms": 0.01}, row | {"ms": 0.3})
    assert rows_of(report)["base, batch 1 x 128, CUDA graph"]["verdict"] == "FAIL"
    put(report, "model/latency", row | {"ms": 0.19})
    assert rows_of(report)["base, batch 1 x 128, CUDA graph"]["verdict"] == "PASS"


def test_what_was_not_measured_has_no_verdict_and_the_table_says_what_happened(report):
    put(report, "kernels/attention S=512", {"provider": "bert_fast", "error": "boom"}, status="failed")
    report.items["kernels/attention S=512"]["error"] = "Traceback\nRuntimeError: boom"
    report.summary = summarise(report)
    assert {row["verdict"] for row in report.summary} == {"-"}
    text = table(report)
    assert "kernels/attention S=512: failed; RuntimeError: boom" in text
    assert "model/training: not run" in text
    assert text.index("base, 128 tokens") < text.index("cross_entropy")
