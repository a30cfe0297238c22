"""Whole encoders as plots: peers side by side, padding, latency, scaling, the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.report.canvas import OURS, Row, colour, figure_of, heading, legend, thousands

_COLUMNS = 3  # panels beside each other


def _best_orders(rows: Sequence[Row]) -> list[Row]:
    """Of each peer the better order for it; ours as handed in."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["workload"], row["peer"])
        if row["peer"] == OURS and row["order"] != "as handed in":
            continue
        if key not in best or row["tokens_per_s"] > best[key]["tokens_per_s"]:
            best[key] = row
    return list(best.values())


def _panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure of ``count`` axes, some beside each other, the others below; inches of one."""
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure, axes = figure_of(width * columns, height * rows, columns, rows)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def peers(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """Bars of every peer, a panel a workload."""
    timed = [row for row in rows if "tokens_per_s" in row and not row["workload"].startswith("padding")]
    if not timed:
        return None
    from matplotlib.ticker import MaxNLocator

    workloads = list(dict.fromkeys(row["workload"] for row in timed))
    names = list(dict.fromkeys(row["peer"] for row in timed))
    given = {(r["workload"], r["peer"]): r["tokens_per_s"] for r in timed if r["order"] == "as handed in"}
    best = {(r["workload"], r["peer"]): r["tokens_per_s"] for r in _best_orders(timed)}
    figure, axes = _panels(len(workloads), 3.9, 0.3 * len(names) + 1.1)
    colours, places = [colour(name, names) for name in names], range(len(names))
    for index, (axis, workload) in enumerate(zip(axes, workloads, strict=True)):
        whole = [best.get((workload, name), 0) for name in names]
        axis.barh(places, whole, color=colours, alpha=0.35)
        axis.barh(places, [given.get((workload, name), 0) for name in names], color=colours)
        for place, value in zip(places, whole, strict=True):
            axis.annotate(thousands(value), (value, place), xytext=(3, 0), textcoords="offset points", va="center",
                          fontsize=8)  # fmt: skip
        axis.set_yticks(places, [""] * len(names) if index % _COLUMNS else names)
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.set_xlim(0, 1.22 * max(whole))
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(thousands)
        axis.set_xlabel("tokens a second", fontsize=8)
        mean = next(row["mean_tokens"] for row in timed if row["workload"] == workload)
        axis.set_title(f"{workload}: {mean:.0f} tokens on average", fontsize=9)
    note = "Strong: the texts as handed in. Light, where that is faster: sorted by length; bert_fast as handed in."
    heading(figure, "Encoders side by side", facts, note)
    return figure


def _line(axis: Any, x: Sequence[float], y: Sequence[float], name: str, names: Sequence[str], **more: Any) -> None:
    width = 2.4 if name == OURS else 1.4
    axis.errorbar(x, y, marker="o", color=colour(name, names), label=name, linewidth=width, capsize=3, **more)


def padding(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """Tokens a second over the share of padding."""
    timed = [row for row in rows if "tokens_per_s" in row and row["workload"].startswith("padding")]
    if not timed:
        return None
    names = list(dict.fromkeys(row["peer"] for row in timed))
    figure, ((axis,),) = figure_of(8.5, 4.2)
    for name in names:
        points = sorted((row["padding"], row["tokens_per_s"]) for row in timed if row["peer"] == name)
        _line(axis, [x for x, _ in points], [y for _, y in points], name, names)
    shares = sorted({row["padding"] for row in timed})
    axis.set_xticks(shares, [f"{share:.0%}" for share in shares])
    axis.set(xlabel="padding in the batch", ylabel="tokens a second, padding not counted")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(thousands)
    legend(axis)
    heading(figure, "What padding costs", facts)
    return figure


def _plain_log(axis: Any, x: Sequence[float], y: Sequence[float]) -> None:
    """Both axes logarithmic, with plain numbers: on x the measured places. Where y hardly grows, it begins at 0."""
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log")
    axis.set_xticks(x, [f"{value:,}" for value in x])
    axis.xaxis.set_minor_locator(NullLocator())
    if max(y) < 4 * min(y):
        axis.set_ylim(0, 1.1 * max(y))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    else:
        _log_y(axis)


def _log_y(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def latency(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """Milliseconds over the length of one text."""
    timed = [row for row in rows if "p50_ms" in row]
    if not timed:
        return None
    names = list(dict.fromkeys(row["peer"] for row in timed))
    figure, ((axis,),) = figure_of(8.5, 4.2)
    for name in names:
        mine = sorted((row for row in timed if row["peer"] == name), key=lambda row: row["tokens"])
        x, y = [row["tokens"] for row in mine], [row["p50_ms"] for row in mine]
        _line(axis, x, y, name, names, yerr=[[0] * len(mine), [row["p99_ms"] - row["p50_ms"] for row in mine]])
    _plain_log(axis, sorted({row["tokens"] for row in timed}), [row[f"p{q}_ms"] for row in timed for q in (50, 99)])
    axis.set(xlabel="tokens of the one text", ylabel="ms: median, up to the 99th percentile")
    legend(axis)
    heading(figure, "Latency of one text", facts)
    return figure


def scaling(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """Times and the fitted laws, a panel a sweep."""
    import numpy as np

    fits = {(row["sweep"], row["peer"]): row["fit"] for row in rows if "fit" in row}
    timed = [row for row in rows if "s" in row and (row["sweep"], row["peer"]) in fits]
    sweeps = list(dict.fromkeys(row["sweep"] for row in timed))
    if not sweeps:
        return None
    names = list(dict.fromkeys(row["peer"] for row in timed))
    figure, axes = _panels(len(sweeps), 4.0, 3.6)
    for axis, sweep in zip(axes, sweeps, strict=True):
        for name in names:
            mine = [row for row in timed if row["sweep"] == sweep and row["peer"] == name]
            x, y = np.array([r["value"] for r in mine], float), np.array([r["s"] * 1e3 for r in mine])
            axis.scatter(x, y, color=colour(name, names), s=26, zorder=3)
            fit = fits[sweep, name]
            along = np.geomspace(x.min(), x.max(), 100)
            if "power" in fit:
                middle = np.exp(np.log(y).mean() - fit["power"] * np.log(x).mean())
                line = middle * along ** fit["power"]
            else:
                line = (fit["fixed_us"] + fit["each_us"] * along) / 1e3
            axis.plot(along, line, color=colour(name, names), label=f"{name}: {fit['law']}", linewidth=1.3)
        swept = [row for row in timed if row["sweep"] == sweep]
        _plain_log(axis, sorted({row["value"] for row in swept}), [1e3 * row["s"] for row in swept])
        axis.set(xlabel=_SWEPT.get(sweep, sweep), ylabel="ms")
        axis.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    heading(figure, "How cost grows", facts, "Dots: measured. Lines: the law that fits them.")
    return figure


_SWEPT = {
    "batch": "sequences of 128 tokens", "tokens": "tokens in sequences of 128",
    "length": "tokens a sequence, 2,048 in all", "layers": "layers", "hidden": "hidden size",
}  # fmt: skip


def scenario(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """The 99th percentile over the load."""
    timed = [row for row in rows if row.get("scenario") == "server"]
    if not timed:
        return None
    names = list(dict.fromkeys(row["peer"] for row in timed))
    figure, ((axis,),) = figure_of(8.5, 4.2)
    for name in names:
        mine = [row for row in timed if row["peer"] == name]
        _line(axis, [row["samples_per_s"] for row in mine], [row["p99_ms"] for row in mine], name, names)
    bound = timed[0]["bound_ms"]
    axis.axhline(bound, color="#444444", linewidth=1.2, linestyle="--", label=f"the bound, {bound:,g} ms")
    axis.set(xlabel="samples a second, Poisson arrivals", ylabel="99th percentile of the answers, ms")
    axis.set_xlim(left=0)
    _log_y(axis)
    legend(axis)
    heading(figure, "Server with Poisson arrivals", facts)
    return figure
