"""Loss and metrics over steps, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from bert_fast import io

_NOT_PLOTTED = {"step", "epoch", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second", "loss_scale"}


def plot(metrics: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the lines of a run's ``metrics.jsonl``: losses above, everything else that was evaluated below.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'bert-fast[train]'") from error
    losses = _curves(metrics, lambda name: name.endswith("loss"))
    others = _curves(metrics, lambda name: not name.endswith("loss") and name not in _NOT_PLOTTED)
    panels = [(title, curves) for title, curves in (("loss", losses), ("evaluation", others)) if curves]
    if not panels:
        return
    figure = Figure(figsize=(8, 3.5 * len(panels)), layout="constrained")
    for place, (title, curves) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, place + 1)
        for name, (steps, values) in curves.items():
            axes.plot(steps, values, label=name, marker="o" if len(steps) < 30 else None, markersize=3)
        axes.set_xlabel("step")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
    with io.atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _curves(metrics: Sequence[dict[str, Any]], wanted: Any) -> dict[str, tuple[list[int], list[float]]]:
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in metrics:
        for name, value in line.items():
            if wanted(name) and isinstance(value, (int, float)) and not isinstance(value, bool):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    return curves
