"""Whole encoders as plots: peers side by side, padding, latency, scaling, the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.report.canvas import OURS, Row, colour, figure_of, machine


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
    figure, axes = figure_of(3.1 * len(workloads) + 1.2, 0.36 * len(names) + 1.5, columns=len(workloads))
    for axis, workload in zip(axes[0], workloads, strict=True):
        places = range(len(names))
        whole = [best.get((workload, name), 0) for name in names]
        axis.barh(places, whole, color=[colour(name, names) for name in names], alpha=0.35)
        plain = [given.get((workload, name), 0) for name in names]
        axis.barh(places, plain, color=[colour(name, names) for name in names])
        for place, value in zip(places, whole, strict=True):
            axis.annotate(f"{value:,.0f}", (value, place), xytext=(3, 0), textcoords="offset points", va="center",
                          fontsize=7)  # fmt: skip
        axis.set_yticks(places, names if axis is axes[0][0] else [""] * len(names), fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.18 * max(whole))
        axis.tick_params(axis="x", labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
        mean = next(row["mean_tokens"] for row in timed if row["workload"] == workload)
        axis.set_title(f"{workload}\n{mean:.0f} tokens on average", fontsize=9)
    figure.supxlabel("tokens a second; strong: texts as handed in, light: sorted by length", fontsize=8, y=-0.04)
    figure.text(0.01, -0.1, f"{timed[0]['model']}: {machine(facts)}", fontsize=7, color="#666666")
    return figure


def padding(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """Tokens a second over the share of padding."""
    timed = [row for row in rows if "tokens_per_s" in row and row["workload"].startswith("padding")]
    if not timed:
        return None
    names = list(dict.fromkeys(row["peer"] for row in timed))
    figure, ((axis,),) = figure_of(7.5, 4.4)
    for name in names:
        points = sorted((row["padding"], row["tokens_per_s"]) for row in timed if row["peer"] == name)
        axis.plot(*zip(*points, strict=True), marker="o", color=colour(name, names), label=name,
                  linewidth=2.4 if name == OURS else 1.4)  # fmt: skip
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set(xlabel="padding in the batch", ylabel="tokens a second, padding not counted", title="What padding costs")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    axis.legend(fontsize=7.5, frameon=False)
    figure.text(0.01, -0.02, f"{timed[0]['model']}: {machine(facts)}", fontsize=7, color="#666666")
    return figure


def latency(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """Milliseconds over the length of one text."""
    timed = [row for row in rows if "p50_ms" in row]
    if not timed:
        return None
    names = list(dict.fromkeys(row["peer"] for row in timed))
    figure, ((axis,),) = figure_of(7.5, 4.4)
    for name in names:
        mine = sorted((row for row in timed if row["peer"] == name), key=lambda row: row["tokens"])
        x, y = [row["tokens"] for row in mine], [row["p50_ms"] for row in mine]
        spread = [[0] * len(mine), [row["p99_ms"] - row["p50_ms"] for row in mine]]
        axis.errorbar(x, y, yerr=spread, marker="o", capsize=3, color=colour(name, names), label=name,
                      linewidth=2.4 if name == OURS else 1.4)  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="tokens of the one text", title="Latency",
             ylabel="ms: median, up to the 99th percentile")  # fmt: skip
    axis.legend(fontsize=7.5, frameon=False)
    figure.text(0.01, -0.02, machine(facts), fontsize=7, color="#666666")
    return figure


def scaling(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """Times and the fitted laws, a panel a sweep."""
    import numpy as np

    timed = [row for row in rows if "s" in row and "value" in row]
    sweeps = list(dict.fromkeys(row["sweep"] for row in timed))
    if not sweeps:
        return None
    names = list(dict.fromkeys(row["peer"] for row in timed))
    figure, axes = figure_of(3.3 * len(sweeps), 3.4, columns=len(sweeps))
    for axis, sweep in zip(axes[0], sweeps, strict=True):
        for name in names:
            mine = [row for row in timed if row["sweep"] == sweep and row["peer"] == name]
            x, y = np.array([r["value"] for r in mine], float), np.array([r["s"] * 1e3 for r in mine])
            axis.scatter(x, y, color=colour(name, names), s=26, zorder=3)
            fit = next(r["fit"] for r in rows if "fit" in r and r["sweep"] == sweep and r["peer"] == name)
            along = np.geomspace(x.min(), x.max(), 100)
            if "power" in fit:
                middle = np.exp(np.log(y).mean() - fit["power"] * np.log(x).mean())
                line = middle * along ** fit["power"]
            else:
                line = (fit["fixed_us"] + fit["each_us"] * along) / 1e3
            axis.plot(along, line, color=colour(name, names), label=f"{name}\n{fit['law']}", linewidth=1.3)
        axis.set(xscale="log", yscale="log", xlabel=sweep)
        values = sorted({row["value"] for row in timed if row["sweep"] == sweep})
        axis.set_xticks(values, [f"{value:,}" for value in values], fontsize=7)
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.legend(fontsize=6, frameon=False)
    axes[0][0].set_ylabel("ms")
    figure.suptitle(f"How cost grows: {timed[0]['model']}, {machine(facts)}", fontsize=9, y=1.0)
    figure.tight_layout()
    return figure


def scenario(rows: Sequence[Row], facts: dict[str, Any]) -> Any:
    """The 99th percentile over the load."""
    timed = [row for row in rows if row.get("scenario") == "server"]
    if not timed:
        return None
    names = list(dict.fromkeys(row["peer"] for row in timed))
    figure, ((axis,),) = figure_of(7.5, 4.4)
    for name in names:
        mine = [row for row in timed if row["peer"] == name]
        axis.plot([row["samples_per_s"] for row in mine], [row["p99_ms"] for row in mine], marker="o",
                  color=colour(name, names), label=name, linewidth=2.4 if name == OURS else 1.4)  # fmt: skip
    axis.axhline(timed[0]["bound_ms"], color="#444444", linewidth=1.2, linestyle="--")
    axis.set(xlabel="queries a second, Poisson arrivals", ylabel="99th percentile of the answers, ms", yscale="log",
             title="Server")  # fmt: skip
    axis.legend(fontsize=7.5, frameon=False)
    figure.text(0.01, -0.02, f"{timed[0]['model']}: {machine(facts)}", fontsize=7, color="#666666")
    return figure
