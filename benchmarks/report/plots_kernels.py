"""The ops as plots: against the machine's roofline, and each as a share of what the machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.report.canvas import COLOURS, GREY, OURS, Row, colour, figure_of, heading, legend, operations
from benchmarks.report.tables import number
from benchmarks.roofs import Roof

_MARKS = {"forward": "o", "training": "s", "backward": "^", "step": "D"}
_DIRECTIONS = {"step": "step (forward and backward)"}


def roofline(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """Operations a second over operations a byte; None where no op has operations."""
    import numpy as np

    timed = [row for row in rows if row.get("flops") and "us" in row and "item" in row]
    if not timed:
        return None
    roof = Roof.of(row for row in rows if "roof" in row)
    unit, scale = operations([roof.flops_per_s])
    figure, ((axis,),) = figure_of(10, 5.4)
    ridge = roof.flops_per_s / roof.bytes_per_s
    intensities = [row["flops"] / row["bytes"] for row in timed]
    low, high = min(*intensities, ridge) / 4, max(*intensities, ridge) * 3
    x = np.geomspace(low, high, 200)
    axis.plot(x, np.minimum(x * roof.bytes_per_s, roof.flops_per_s) / scale, color="#444444", linewidth=1.6)
    corner = (ridge, roof.flops_per_s / scale)
    said = f"copy {number(roof.bytes_per_s / 1e9)} GB/s up to here, then matmul {number(corner[1])} {unit}"
    axis.annotate(said, corner, ha="left", va="bottom", fontsize=8, color="#444444", xytext=(0, 4),
                  textcoords="offset points")  # fmt: skip
    names = list(dict.fromkeys(row["provider"] for row in timed))
    items = list(dict.fromkeys(row["item"] for row in timed))
    for row in timed:
        ours = row["provider"] == OURS
        place = row["flops"] / row["bytes"], row["tflop_per_s"] * 1e12 / scale
        axis.scatter(
            *place, marker=_MARKS[row["direction"]], s=120 if ours else 34, color=colour(row["provider"], names),
            zorder=2 if ours else 3, alpha=0.9, edgecolors="white", linewidths=0.6,
        )  # fmt: skip
        if ours:
            axis.annotate(str(items.index(row["item"]) + 1), place, fontsize=8, xytext=(8, -3), zorder=4,
                          textcoords="offset points", color=COLOURS[0], fontweight="bold")  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel=unit)
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_formatter(lambda value, _: f"{value:g}")
    for name in names:
        axis.scatter([], [], color=colour(name, names), label=name)
    for direction in dict.fromkeys(row["direction"] for row in timed):
        axis.scatter([], [], color=GREY, marker=_MARKS[direction], label=_DIRECTIONS.get(direction, direction))
    for place, item in enumerate(items, 1):
        axis.scatter([], [], color=COLOURS[0], marker=f"${place}$", label=item)
    legend(axis)
    note = "Ops that compute next to nothing, as LayerNorm, are bound by the copy: see the share of the roof."
    heading(figure, "Roofline", facts, note, model=False)
    return figure


def shares(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """Every op, provider and direction on one line each."""
    timed = [row for row in rows if "of_roof" in row]
    if not timed:
        return None
    groups = list(dict.fromkeys((row["item"], row["direction"]) for row in timed))
    names = list(dict.fromkeys(row["provider"] for row in timed))
    figure, ((axis,),) = figure_of(9, 0.27 * len(groups) + 1.2)
    for name in names:
        found = {(r["item"], r["direction"]): r["of_roof"] for r in timed if r["provider"] == name}
        places = [i for i, key in enumerate(groups) if key in found]
        axis.scatter(  # ours large and below, so that nobody hides anybody
            [found[groups[i]] for i in places], places, color=colour(name, names), label=name, clip_on=False,
            s=90 if name == OURS else 24, zorder=3 if name == OURS else 4, edgecolors="white", linewidths=0.6,
        )  # fmt: skip
    axis.set_yticks(range(len(groups)), [f"{item}, {direction}" for item, direction in groups], fontsize=8)
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.axvline(1.0, color="#444444", linewidth=1.2)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_xlabel("of what the machine's copy and matmul speed allow; above 100%: out of its caches", fontsize=9)
    legend(axis)
    heading(figure, "Share of the roof", facts, model=False)
    return figure
