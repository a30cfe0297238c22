"""The rows of a run as tables: what the terminal and the page show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
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
    return [table for table in found if table.rows]


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
    machine = tuple(
        (row["roof"], number(row["us"]), number(row.get("bytes_per_s", 0) / 1e9) if "bytes_per_s" in row else "-",
         number(row["flops_per_s"] / 1e12) if "flops_per_s" in row else "-")
        for row in rows if "roof" in row
    )  # fmt: skip
    timed = [row for row in rows if "us" in row and "item" in row]
    lines = tuple(
        (row["item"], row["direction"], row["provider"], number(row["us"]) + ("*" if row["host_bound"] else ""),
         _spread(row), number(row.get("graph_us")), number(row["gb_per_s"]), number(row.get("tflop_per_s")),
         f"{row['of_roof']:.0%}", row["bound"], number(row.get("peak_mib")), number(row["error_ratio"], 2))
        for row in timed
    )  # fmt: skip
    head = (
        "op", "direction", "provider", "us", "20th .. 80th", "us, graph", "GB/s", "TFLOP/s", "of the roof", "bound by",
        "peak MiB", "error",
    )  # fmt: skip
    note = "error: the worst, as a share of what the numeric contract allows. *: the GPU may have waited for the host."
    return [
        Table("What the machine can do", ("roof", "us", "GB/s", "TFLOP/s"), machine),
        Table("Ops", head, lines, 3, note),
    ]


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
        note = "Tokens that are not padding, a second; x: beside transformers as handed in."
        columns = ("peer", "version", "order")
        found.append(_pivot(f"Encoder, {which}: {title}", chosen, columns, lambda r: r["workload"], cell, note))
    return found


def _latency(rows: Sequence[Row]) -> list[Table]:
    timed = [row for row in rows if "p50_ms" in row]

    def cell(row: Row) -> str:
        return " / ".join(number(row[f"p{q}_ms"]) for q in (50, 90, 99))

    note = "Milliseconds: 50th / 90th / 99th percentile."
    return [_pivot("Latency of one text", timed, ("peer",), lambda r: r["workload"], cell, note)]


def _training(rows: Sequence[Row]) -> list[Table]:
    timed = [row for row in rows if "ms" in row]
    base = next((row["ms"] for row in timed if row["peer"] == BASELINE), None)
    lines = tuple(
        (row["peer"], number(row["ms"]), _spread(row), number(row["sequences_per_s"]), number(row["tokens_per_s"]),
         f"{base / row['ms']:.2f}x" if base else "-", number(row.get("peak_mib")))
        for row in timed
    )  # fmt: skip
    head = ("peer", "ms a step", "20th .. 80th", "sequences/s", "tokens/s", "beside transformers", "peak MiB")
    return [Table("A step of training", head, lines)]


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
    offline = tuple(
        (row["peer"], number(row["samples_per_s"]), number(row["flops_per_s"] / 1e12), number(row["mean_tokens"]))
        for row in rows if row.get("scenario") == "offline"
    )  # fmt: skip
    server = tuple(
        (row["peer"], f"{row['load']:.0%}", number(row["samples_per_s"]), number(row["p50_ms"]), number(row["p99_ms"]),
         "yes" if row["held"] else "no")
        for row in rows if row.get("scenario") == "server"
    )  # fmt: skip
    most = tuple(
        (row["peer"], number(row["samples_per_s"]), number(row["bound_ms"]))
        for row in rows
        if row.get("scenario", "").startswith("server, most")
    )
    heads = ("peer", "load", "samples/s", "p50 ms", "p99 ms", "held")
    return [
        Table("Offline", ("peer", "samples/s", "TFLOP/s", "mean tokens"), offline),
        Table("Server, Poisson arrivals", heads, server, note="load: as a share of the peer's own offline rate"),
        Table("Server, the most within the bound", ("peer", "samples/s", "p99 bound, ms"), most),
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
    lines = []
    for section, rows in sections.items():
        for row in rows:
            reason = reason_of(row)
            if reason:
                what = row.get("item") or row.get("workload") or row.get("case") or ""
                line = (section, what, row.get("provider") or row.get("peer") or "", reason)
                lines.append(line)
    return Table("Not measured", ("section", "what", "who", "why"), tuple(dict.fromkeys(lines)), 4)


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
