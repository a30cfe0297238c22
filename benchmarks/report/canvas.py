"""What all plots share: figures, colours, the line that says where a run took place."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
OURS = "bert_fast"
# Ours in one strong colour, everybody else in calm ones that differ in lightness, too.
COLOURS = (
    "#d1495b", "#1f3b57", "#5b8fb9", "#7a9e7e", "#b08968", "#8d7aa5", "#4d4d4d", "#9aa5b1", "#c2a83e", "#6aa3a0",
)  # fmt: skip


def png(figure: Any) -> bytes:
    """The figure as PNG; it is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", facecolor="white")
    pyplot.close(figure)
    return buffer.getvalue()


def figure_of(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure and its axes ``[rows, columns]``, inches."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def colour(name: str, names: Sequence[str]) -> str:
    """Of a name, the same wherever the same names are shown."""
    if name == OURS:
        return COLOURS[0]
    others = [other for other in names if other != OURS]
    return COLOURS[1 + others.index(name) % (len(COLOURS) - 1)]


def machine(facts: dict[str, Any]) -> str:
    """Where and how, for the foot of a plot."""
    env = facts["environment"]
    where = env["gpu"]["name"] if facts["settings"]["device"] == "cuda" and env["gpu"] else env["processor"]
    return f"{where}, {facts['settings']['dtype']}, {facts['settings']['threads']} CPU threads"
