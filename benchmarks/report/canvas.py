"""What all plots share: figures, headings, colours, units, the line that says where a run took place."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

Row = dict[str, Any]
OURS = "bert_fast"
# Ours in one strong colour, everybody else in calm ones that differ in lightness, too.
COLOURS = (
    "#d1495b", "#1f3b57", "#5b8fb9", "#7a9e7e", "#b08968", "#8d7aa5", "#4d4d4d", "#9aa5b1", "#c2a83e", "#6aa3a0",
    "#e3a587", "#46518a", "#3d7068", "#b9c48a", "#7b4b3a", "#c9a0c4", "#8c8c3a", "#a05195",
)  # fmt: skip
GREY = "#666666"
# Those who are in most runs look the same in all of them.
_ALWAYS = (
    OURS, "transformers", "transformers, torch.compile", "ONNX Runtime", "OpenVINO", "CTranslate2",
    "sentence-transformers", "PyTorch, quantize_dynamic",
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

    figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
    return figure, axes


def heading(figure: Any, title: str, facts: dict[str, Any], note: str = "", *, model: bool = True) -> None:
    """Above the figure what it shows, and of what: model, machine, dtype; a note below it."""
    from matplotlib.transforms import ScaledTranslation

    what = f"{facts['settings']['model']} on {machine(facts)}" if model else machine(facts)
    lines = (title, 1, 24, 12, "black"), (what, 1, 9, 8, GREY), (note, 0, -14, 8, GREY)
    for text, height, points, size, ink in lines:
        moved = figure.transFigure + ScaledTranslation(4 / 72, points / 72, figure.dpi_scale_trans)
        figure.text(0, height, text, transform=moved, fontsize=size, color=ink)


def legend(axis: Any, **options: Any) -> None:
    """Who is who, beside the plot and never over it."""
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), **options)


def colour(name: str, names: Sequence[str]) -> str:
    """Of a name, the same wherever the same names are shown."""
    if name in _ALWAYS:
        return COLOURS[_ALWAYS.index(name)]
    rest = [other for other in names if other not in _ALWAYS]
    free = [code for code, owner in zip_longest(COLOURS, _ALWAYS) if owner != OURS and owner not in names]
    return free[rest.index(name) % len(free)]


def thousands(value: float, _: Any = None) -> str:
    """At most three digits: 1499.9 is 1.5k, 2e6 is 2M."""
    size, unit = next(((size, unit) for size, unit in ((1e6, "M"), (1e3, "k")) if abs(value) >= size), (1, ""))
    return f"{value / size:.3g}{unit}"


def operations(rates: Iterable[float]) -> tuple[str, float]:
    """The unit for operations a second that suits the largest, and what to divide by."""
    return ("TFLOP/s", 1e12) if max(rates, default=0.0) >= 1e12 else ("GFLOP/s", 1e9)


def machine(facts: dict[str, Any]) -> str:
    """Where and how."""
    env, settings = facts["environment"], facts["settings"]
    if settings["device"] == "cuda" and env["gpu"]:
        return f"{env['gpu']['name']}, {settings['dtype']}"
    threads = settings["threads"]
    return f"{env['processor']}, {threads} thread{'s' if threads > 1 else ''}, {settings['dtype']}"
