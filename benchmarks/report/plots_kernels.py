"""The ops as plots: against the machine's roofline, and each as a share of what the machine can do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.report.canvas import COLOURS, OURS, Row, colour, figure_of, machine
from benchmarks.roofs import Roof


def roofline(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """Operations a second over operations a byte; None where no op has operations."""
    import numpy as np

    timed = [row for row in rows if row.get("flops") and "us" in row and "item" in row]
    if not timed:
        return None
    roof = Roof.of(row for row in rows if "roof" in row)
    figure, ((axis,),) = figure_of(9, 5.2)
    ridge = roof.flops_per_s / roof.bytes_per_s
    intensities = [row["flops"] / row["bytes"] for row in timed]
    low, high = min(*intensities, ridge) / 4, max(*intensities, ridge) * 3
    x = np.geomspace(low, high, 200)
    axis.plot(x, np.minimum(x * roof.bytes_per_s, roof.flops_per_s) / 1e12, color="#444444", linewidth=1.6)
    slope = min(x[40] * roof.bytes_per_s, roof.flops_per_s) / 1e12
    axis.annotate(f"copy {roof.bytes_per_s / 1e9:,.0f} GB/s", (x[40], slope), ha="right", va="bottom", fontsize=8,
                  color="#444444")  # fmt: skip
    axis.annotate(f"matmul {roof.flops_per_s / 1e12:,.3g} TFLOP/s", (x[-1], roof.flops_per_s / 1e12), ha="right",
                  va="bottom", fontsize=8, color="#444444")  # fmt: skip
    names = list(dict.fromkeys(row["provider"] for row in timed))
    marks = {"forward": "o", "training": "s", "backward": "^", "step": "D"}
    for row in timed:
        ours = row["provider"] == OURS
        axis.scatter(
            row["flops"] / row["bytes"], row["tflop_per_s"], marker=marks[row["direction"]], s=60 if ours else 32,
            color=colour(row["provider"], names), zorder=3 if ours else 2, alpha=0.95 if ours else 0.75,
            edgecolors="white", linewidths=0.6,
        )  # fmt: skip
    written: list[tuple[float, float]] = []
    for row in (row for row in timed if row["provider"] == OURS):
        place = row["flops"] / row["bytes"], row["tflop_per_s"]
        at = math.log10(place[0]), math.log10(place[1])
        if all(abs(at[0] - x) > 0.25 or abs(at[1] - y) > 0.07 for x, y in written):  # else one name covers another
            axis.annotate(f"{row['item']}, {row['direction']}", place, fontsize=6.5, xytext=(7, -2),
                          textcoords="offset points", color=COLOURS[0])  # fmt: skip
            written.append(at)
    for name in names:
        axis.scatter([], [], color=colour(name, names), label=name)
    axis.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="TFLOP/s", title="Roofline")
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.text(0.01, -0.02, machine(facts) + ". Circle forward, square training, triangle backward, diamond both.",
                fontsize=7, color="#666666")  # fmt: skip
    return figure


def shares(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """Every op, provider and direction on one line each."""
    timed = [row for row in rows if "of_roof" in row]
    if not timed:
        return None
    groups = list(dict.fromkeys((row["item"], row["direction"]) for row in timed))
    names = list(dict.fromkeys(row["provider"] for row in timed))
    figure, ((axis,),) = figure_of(9, 0.36 * len(groups) + 1.4)
    for name in names[::-1]:
        found = {(r["item"], r["direction"]): r["of_roof"] for r in timed if r["provider"] == name}
        places = [i for i, key in enumerate(groups) if key in found]
        axis.scatter(
            [found[groups[i]] for i in places], places, color=colour(name, names), label=name,
            s=58 if name == OURS else 30, zorder=3 if name == OURS else 2, edgecolors="white", linewidths=0.6,
        )  # fmt: skip
    axis.set_yticks(range(len(groups)), [f"{item}, {direction}" for item, direction in groups], fontsize=7.5)
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.axvline(1.0, color="#444444", linewidth=1.2)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set(xlabel="of what the machine's copy and matmul speed allow", title="Share of the roof")
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.set_title(machine(facts), fontsize=7, color="#666666", loc="right")
    return figure
