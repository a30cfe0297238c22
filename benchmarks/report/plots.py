"""Plots of a run, as PNG."""

from __future__ import annotations

from typing import Any

from benchmarks.report.canvas import png


def plots(facts: dict[str, Any]) -> dict[str, bytes]:
    """PNG by name, of what the run has rows for.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from benchmarks.report import plots_encoders as encoders
    from benchmarks.report import plots_kernels as kernels

    makers = {
        "roofline": ("kernels", kernels.roofline), "share_of_roof": ("kernels", kernels.shares),
        "peers": ("model", encoders.peers), "padding": ("model", encoders.padding),
        "latency": ("latency", encoders.latency), "scaling": ("scaling", encoders.scaling),
        "scenario": ("scenario", encoders.scenario),
    }  # fmt: skip
    found = {}
    for name, (section, make) in makers.items():
        rows = facts["sections"].get(section, [])
        figure = make(rows, facts) if rows else None
        if figure is not None:
            found[name] = png(figure)
    return found
