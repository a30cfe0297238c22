"""The short table at the end: the design's targets beside what was measured, the most important first.

Targets are the design's, for a GPU that multiplies at 790 TFLOP/s (bfloat16) and copies at 4.3 TB/s. On another one a
rate that is given as such is scaled by the roof measured in the same run; fractions of a roof need no scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.report import Report

DESIGN_MATMUL, DESIGN_COPY = 790e12, 4.3e12
_PASSING, _FAILING, _UNKNOWN = "PASS", "FAIL", "-"


@dataclass(frozen=True)
class Target:
    """One row: which measurement it reads, and what it should be at least (or at most, for a latency)."""

    title: str
    item: str
    where: dict[str, Any]  # what the measurement's row must say
    unit: str
    value: float
    read: Callable[[dict[str, Any]], float]
    scaled_by: str | None = None  # "matmul" or "copy"
    at_most: bool = False


def _model(title: str, item: str, provider: str, value: float) -> Target:
    where = {"provider": provider}
    return Target(title, f"model/{item}", where, "seq/s", value, lambda row: row["sequences_per_s"], "matmul")


def _flops(title: str, item: str, direction: str, value: float) -> Target:
    where = {"provider": "bert_fast", "direction": direction}
    return Target(
        title, f"kernels/{item}", where, "TFLOP/s", value, lambda row: row["flops"] / row["us"] / 1e6, "matmul"
    )


def _share(title: str, item: str, direction: str, value: float) -> Target:
    """Of the copy speed; the reader turns bytes into a share, see :func:`_measured`."""
    where = {"provider": "bert_fast", "direction": direction}
    return Target(title, f"kernels/{item}", where, "of copy speed", value, lambda row: row["bytes"] / row["us"] * 1e6)


TARGETS = (
    _model("base, 128 tokens, packed", "base 128", "bert_fast, packed", 25_000),
    _model("large, SQuAD-like lengths, packed", "large squad", "bert_fast, packed", 5_300),
    _model("large, training, packed", "training", "bert_fast, packed", 1_000),
    Target(
        "base, batch 1 x 128, CUDA graph", "model/latency", {"provider": "bert_fast", "way": "CUDA graph"}, "ms", 0.20,
        lambda row: row["ms"], at_most=True,
    ),
    _flops("attention forward, S=128", "attention S=128", "forward", 230),
    _flops("attention forward, S=512", "attention S=512", "forward", 450),
    _flops("attention backward, S=128", "attention S=128", "backward", 260),
    _flops("attention backward, S=512", "attention S=512", "backward", 400),
    _share("dropout_add_layer_norm forward", "dropout_add_layer_norm", "forward", 0.95),
    _share("dropout_add_layer_norm backward", "dropout_add_layer_norm p=0.1", "backward", 0.85),
    _share("embedding_layer_norm forward", "embedding_layer_norm", "forward", 0.85),
    _share("cross_entropy, forward and backward", "cross_entropy", "step", 0.90),
    _share("lamb, BERT-large", "lamb", "forward", 0.85),
)  # fmt: skip


def summarise(report: Report) -> list[dict[str, Any]]:
    """A row per target: measured, target (scaled where it must be), verdict, and the best peer of the same item."""
    roofs = {row["roof"]: row for row in report.rows("kernels/roofs") if "roof" in row}
    return [_row(target, report, roofs) for target in TARGETS]


def _row(target: Target, report: Report, roofs: dict[str, dict]) -> dict[str, Any]:
    wanted = _scaled(target, roofs)
    found = [row for row in report.rows(target.item) if target.where.items() <= row.items()]
    values = [value for row in found if (value := _measured(target, row, roofs)) is not None]
    measured = (min if target.at_most else max)(values, default=None)
    if measured is None or wanted is None or report.rehearsal:
        verdict = _UNKNOWN
    else:
        verdict = _PASSING if (measured <= wanted if target.at_most else measured >= wanted) else _FAILING
    return {
        "title": target.title, "unit": target.unit, "measured": measured, "target": wanted, "design": target.value,
        "verdict": verdict, "best peer": _best_peer(target, report, roofs), "item": target.item,
        "status": report.items.get(target.item, {}).get("status", "not chosen"),
    }  # fmt: skip


def _scaled(target: Target, roofs: dict[str, dict]) -> float | None:
    if target.scaled_by is None:
        return target.value
    roof = roofs.get(target.scaled_by, {}).get("flops_per_s")
    return None if roof is None else target.value * roof / DESIGN_MATMUL


def _measured(target: Target, row: dict[str, Any], roofs: dict[str, dict]) -> float | None:
    try:
        value = target.read(row)
    except KeyError:
        return None  # the row holds an error or a reason in place of a time
    if target.unit != "of copy speed":
        return value
    copy = roofs.get("copy", {}).get("bytes_per_s")
    return None if copy is None else value / copy


def _best_peer(target: Target, report: Report, roofs: dict[str, dict]) -> list | None:
    same = {key: value for key, value in target.where.items() if key != "provider"}
    peers = [
        (value, row["provider"])
        for row in report.rows(target.item)
        if same.items() <= row.items()
        and not row.get("provider", "").startswith("bert_fast")
        and (value := _measured(target, row, roofs)) is not None
    ]
    best = (min if target.at_most else max)(peers, default=None)
    return None if best is None else [best[1], best[0]]


def table(report: Report) -> str:
    """The summary, and every item that did not end well, as text."""
    head = ("", "measured", "target", "unit", "verdict", "best peer")
    lines = [head]
    for row in report.summary:
        peer = row["best peer"]
        lines.append((
            row["title"], _number(row["measured"]), _number(row["target"]), row["unit"], row["verdict"],
            f"{peer[0]}: {_number(peer[1])}" if peer else row["status"] if row["measured"] is None else "",
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    statuses = [f"{label}: {_why(item)}" for label, item in report.items.items() if item["status"] != "ok"]
    count = len(report.items)
    shown += ["", f"{count - len(statuses)} of {count} items ended well"] + statuses
    return "\n".join(shown)


def _why(item: dict[str, Any]) -> str:
    lines = (item.get("error") or "").strip().splitlines()
    said = lines[-1] if item["status"] == "failed" and lines else lines[0] if lines else ""
    return f"{item['status']}; {said[:160]}" if said else item["status"]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
