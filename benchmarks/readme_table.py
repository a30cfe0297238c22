"""README's table of measured speed, out of committed results: no number in it is typed.

    python -m benchmarks.readme_table          # prints the table
    python -m benchmarks.readme_table --write  # puts it into README.md, between its two markers

A new measurement replaces the names in SOURCES: files of benchmarks/results, as `bert-fast bench model --json` or
benchmarks.cpu_encoder wrote them. A test holds README and files together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.options import ROOT
from bert_fast.io import atomic_write

SOURCES = ("cpu_encoder_minilm_float32_2026-11-25.json", "cpu_encoder_minilm_bfloat16_2026-11-25.json")
BEGIN, END = "<!-- benchmarks.readme_table: begin -->", "<!-- benchmarks.readme_table: end -->"
_OURS, _BASE = "bert_fast, as handed in", "transformers, as handed in"
_TITLES = {
    "transformers, sorted by length": "sorted by length",
    "transformers, sorted, torch.compile": "sorted, `torch.compile` with freezing",
}
Line = dict[str, float]  # who, and tokens a second


def table(folder: Path = ROOT / "benchmarks" / "results", sources: Sequence[str] = SOURCES) -> str:
    """The table as Markdown: a line per dtype (and workload, where there are several), a column per contender.

    Raises:
        ValueError: a file holds no such results.
    """
    lines = [line for name in sources for line in lines_of(json.loads((folder / name).read_text(encoding="utf-8")))]
    names = list(dict.fromkeys(name for _, found in lines for name in found))
    others = [name for name in names if name not in (_OURS, _BASE)]
    columns = [_BASE, *others, _OURS]
    rows = ["| tokens a second | " + " | ".join(_TITLES.get(name, name) for name in columns) + " |"]
    rows.append("|---" * (len(columns) + 1) + "|")
    for title, found in lines:
        cells = [f"{found[name]:,.0f}" if name in found else "-" for name in columns]
        cells[-1] += f" ({found[_OURS] / found[_BASE]:.1f}x)"
        rows.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def lines_of(report: dict[str, Any]) -> list[tuple[str, Line]]:
    """Title and contenders of each workload in a results file."""
    if "results" in report:
        found = {name: row["tokens_per_second"] for name, row in report["results"].items()}
        found.pop("bert_fast, sorted by length", None)  # within its noise: nothing is padded either way
        return [(report["dtype"], found)]
    rows = [row for row in report.get("sections", {}).get("model", []) if "tokens_per_s" in row]
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    lines = []
    for workload in workloads:
        found = {
            f"{row['peer']}, {row['order']}": row["tokens_per_s"]
            for row in rows
            if row["workload"] == workload and not (row["peer"] == "bert_fast" and row["order"] == "sorted")
        }
        if _OURS in found and _BASE in found:
            lines.append((f"{rows[0]['dtype']}, {workload}", found))
    if not lines:
        raise ValueError("a results file must hold tokens a second of bert_fast and of transformers, as handed in")
    return lines


def written(readme: str, made: str) -> str:
    """README's text with the table between its markers.

    Raises:
        ValueError: there are no such markers.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must hold {BEGIN} and, after it, {END}")
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into README.md")
    if not parser.parse_args(arguments).write:
        print(table())
        return 0
    readme = ROOT / "README.md"
    atomic_write(readme, written(readme.read_text(encoding="utf-8"), table()).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
