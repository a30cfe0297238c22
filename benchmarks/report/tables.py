"""The rows of a run as tables: what the terminal and the page show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.report.canvas import Row, operations

BASELINE = "transformers"


@dataclass(frozen=True)
class Table:
    """``head`` and ``rows`` are text; the first ``named`` columns are names, the others numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    named: int = 1
    note: str = ""


def tables(facts: dict[str, Any]) -> list[Table]:
    """All tables of a run, those without a row left out."""
    makers = {
        "kernels": _kernels, "model": _model, "latency": _latency, "training": _training, "scaling": _scaling,
        "scenario": _scenario, "against": _against,
    }  # fmt: skip
    found: list[Table] = []
    for section, rows in facts["sections"].items():
        found += makers[section](rows)
    found.append(_unmeasured(facts["sections"]))
    return [_without_empty(table) for table in found if table.rows]


def _without_empty(table: Table) -> Table:
    """Without the columns in which nothing was measured."""
    columns = range(len(table.head))
    kept = [i for i in columns if i < table.named or any(row[i] != "-" for row in table.rows)]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return replace(table, head=tuple(table.head[i] for i in kept), rows=rows)


def _of(rows: Sequence[Row]) -> str:
    """The model and dtype that rows are about, for a title."""
    return f": {rows[0]['model']}, {rows[0]['dtype']}" if rows else ""


def number(value: float | None, digits: int = 3) -> str:
    """Short: no more digits than a measurement has."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _spread(row: Row, scale: float = 1.0) -> str:
    return f"{number(row['p20'] * scale)} .. {number(row['p80'] * scale)}"


def _kernels(rows: Sequence[Row]) -> list[Table]:
    roofs = [row for row in rows if "roof" in row]
    unit, scale = operations(row.get("flops_per_s", 0.0) for row in roofs)
    machine = tuple(
        (row["roof"], number(row["us"]), number(_over(row.get("bytes_per_s"), 1e9)),
         number(_over(row.get("flops_per_s"), scale)))
        for row in roofs
    )  # fmt: skip
    timed = [row for row in rows if "us" in row and "item" in row]
    fastest: dict[tuple[str, str], float] = {}
    for row in timed:
        key = row["item"], row["direction"]
        fastest[key] = min(row["us"], fastest.get(key, row["us"]))
    lines = tuple(
        (row["item"], row["direction"], row["provider"], number(row["us"]) + ("*" if row["host_bound"] else ""),
         f"{row['us'] / fastest[row['item'], row['direction']]:.2f}", _spread(row), number(row.get("graph_us")),
         number(row["gb_per_s"]), number(_over(row.get("tflop_per_s"), scale / 1e12)), f"{row['of_roof']:.0%}",
         row["bound"], number(row.get("peak_mib")), number(row["error_ratio"], 2))
        for row in timed
    )  # fmt: skip
    head = (
        "op", "direction", "provider", "us", "x fastest", "20th .. 80th", "us, graph", "GB/s", unit, "of the roof",
        "bound by", "peak MiB", "error",
    )  # fmt: skip
    note = "x fastest: its time over that of the fastest. error: the worst, as a share of what the contract allows."
    if any(row["host_bound"] for row in timed):
        note += " *: the GPU may have waited for the host."
    return [
        Table("What the machine can do", ("roof", "us", "GB/s", unit), machine),
        Table("Ops", head, lines, 3, note),
    ]


def _over(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def _pivot(
    title: str, rows: Sequence[Row], names: Sequence[str], column: Callable[[Row], str], cell: Callable[[Row], str],
    note: str = "",
) -> Table:  # fmt: skip
    """Names of the lines from the fields ``names``, a column per value of ``column``, in order of appearance."""
    columns = list(dict.fromkeys(column(row) for row in rows))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        lines.setdefault(tuple(str(row[name]) for name in names), {})[column(row)] = cell(row)
    body = tuple((*key, *(cells.get(c, "-") for c in columns)) for key, cells in lines.items())
    return Table(title, (*names, *columns), body, len(names), note)


def baselines(rows: Iterable[Row]) -> dict[str, float]:
    """Tokens a second of transformers as handed in, by workload."""
    return {
        row["workload"]: row["tokens_per_s"]
        for row in rows
        if row.get("peer") == BASELINE and row.get("order") == "as handed in"
    }


def _model(rows: Sequence[Row]) -> list[Table]:
    timed = [row for row in rows if "tokens_per_s" in row]
    base = baselines(timed)

    def cell(row: Row) -> str:
        than = base.get(row["workload"])
        return number(row["tokens_per_s"]) + (f" ({row['tokens_per_s'] / than:.2f}x)" if than else "")

    def padded(row: Row) -> bool:
        return row["workload"].startswith("padding")

    found = []
    for title, chosen in (
        ("lengths as they occur", [r for r in timed if not padded(r)]),
        ("padding", [r for r in timed if padded(r)]),
    ):
        which = f"{timed[0]['model']}, {timed[0]['dtype']}" if timed else ""
        note = "Tokens that are not padding, a second" + ("; x: beside transformers as handed in." if base else ".")
        columns = ("peer", "version", "order")
        found.append(_pivot(f"Encoder, {which}: {title}", chosen, columns, lambda r: r["workload"], cell, note))
    return found


def _latency(rows: Sequence[Row]) -> list[Table]:
    timed = [row for row in rows if "p50_ms" in row]

    def cell(row: Row) -> str:
        return " / ".join(number(row[f"p{q}_ms"]) for q in (50, 90, 99))

    note = "Milliseconds: 50th / 90th / 99th percentile."
    return [_pivot(f"Latency of one text{_of(timed)}", timed, ("peer",), lambda r: r["workload"], cell, note)]


def _training(rows: Sequence[Row]) -> list[Table]:
    timed = [row for row in rows if "ms" in row]
    base = next((row["ms"] for row in timed if row["peer"] == BASELINE), None)
    lines = tuple(
        (row["peer"], number(row["ms"]), _spread(row), number(row["sequences_per_s"]), number(row["tokens_per_s"]),
         f"{base / row['ms']:.2f}x" if base else "-", number(row.get("peak_mib")))
        for row in timed
    )  # fmt: skip
    head = ("peer", "ms a step", "20th .. 80th", "sequences/s", "tokens/s", "beside transformers", "peak MiB")
    return [Table(f"A step of training{_of(timed)}", head, lines)]


def _scaling(rows: Sequence[Row]) -> list[Table]:
    fits = [row for row in rows if "fit" in row]
    lines = tuple((r["sweep"], r["peer"], r["fit"]["law"], f"{r['fit']['explained']:.3f}") for r in fits)
    timed = [row for row in rows if "s" in row]
    found = [Table("How cost grows: the fits", ("with", "peer", "law", "explained"), lines, 2)]
    for sweep in dict.fromkeys(row["sweep"] for row in timed):
        chosen = [row for row in timed if row["sweep"] == sweep]
        columns, cell = (lambda r: str(r["value"])), (lambda r: number(r["s"] * 1e3))
        found.append(_pivot(f"Milliseconds by {sweep}", chosen, ("peer",), columns, cell))
    return found


def _scenario(rows: Sequence[Row]) -> list[Table]:
    offline = [row for row in rows if row.get("scenario") == "offline"]
    server = [row for row in rows if row.get("scenario") == "server"]
    most = [row for row in rows if row.get("scenario") == "server, most within the bound"]
    unit, scale = operations(row["flops_per_s"] for row in offline)
    all_at_once = tuple(
        (row["peer"], number(row["samples_per_s"]), number(row["flops_per_s"] / scale), number(row["mean_tokens"]),
         number(row["samples"]))
        for row in offline
    )  # fmt: skip
    arriving = tuple(
        (row["peer"], f"{row['load']:.0%}", number(row["samples_per_s"]), number(row["p50_ms"]), number(row["p99_ms"]),
         number(row["samples"]), "yes" if row["held"] else "no")
        for row in server
    )  # fmt: skip
    held = tuple((row["peer"], number(row["samples_per_s"] or None), number(row["bound_ms"])) for row in most)
    heads = ("peer", "load", "samples/s", "p50 ms", "p99 ms", "samples", "held")
    note = "load: as a share of the peer's own offline rate; of 100 samples or fewer, p99 is the slowest."
    return [
        Table(f"Offline{_of(offline)}", ("peer", "samples/s", unit, "mean tokens", "samples"), all_at_once),
        Table(f"Server, Poisson arrivals{_of(server)}", heads, arriving, note=note),
        Table(f"Server, the most within the bound{_of(most)}", ("peer", "samples/s", "p99 bound, ms"), held),
    ]


def _against(rows: Sequence[Row]) -> list[Table]:
    lines = tuple(
        (row["case"], number(row["then_us"]), number(row["now_us"]), f"{row['speedup']:.3f}x",
         f"{row['low']:.3f} .. {row['high']:.3f}", row["verdict"])
        for row in rows if "speedup" in row
    )  # fmt: skip
    revision = rows[0].get("revision", "") if rows else ""
    head = ("case", f"{revision[:12]}, us", "now, us", "faster by", "20th .. 80th of the rounds", "")
    return [Table("This tree against another revision", head, lines)]


def _unmeasured(sections: dict[str, list[Row]]) -> Table:
    """Who was not measured and why, a line for all that one reason holds for."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for section, rows in sections.items():
        for row in rows:
            if reason := reason_of(row):
                what = row.get("item") or row.get("workload") or row.get("case") or ""
                who = row.get("provider") or row.get("peer") or ""
                found.setdefault((section, who, reason), {})[what] = None
    lines = tuple((section, who, reason, ", ".join(what)) for (section, who, reason), what in found.items())
    return Table("Not measured", ("section", "who", "why", "what"), lines, 4)


def reason_of(row: Row) -> str | None:
    """Why a row holds no measurement; None if it does."""
    if "not run" in row:
        return row["not run"]
    error = row.get("error") or row.get("failed")
    if error:
        return error.strip().splitlines()[-1][:200]
    if row.get("right") is False:
        ratio = row.get("error_ratio")
        return "WRONG" if ratio is None else f"WRONG: its error is {ratio:.3g} times what the contract allows"
    return None


def text(table: Table) -> str:
    """Aligned for a terminal."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    sides = [str.ljust if i < table.named else str.rjust for i in range(len(widths))]
    shown = ["  ".join(map(lambda side, c, w: side(c, w), sides, line, widths)) for line in lines]
    rule = "  ".join("-" * width for width in widths)
    body = [table.title, shown[0].rstrip(), rule, *(line.rstrip() for line in shown[1:])]
    return "\n".join([*body, *([table.note] if table.note else [])])
