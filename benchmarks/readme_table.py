"""README's table of encoders on a CPU, out of committed results: no number in it is typed.

    python -m benchmarks.readme_table          # prints the table
    python -m benchmarks.readme_table --write  # puts it into README.md, between its two markers

A new measurement replaces the names in SOURCES: files of benchmarks/results, as `bert-fast bench model --json` wrote
them. A file that was cut short gives the lines it has. A test holds README and files together.
"""

from __future__ import annotations

import argparse
import functools
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench import DTYPES
from benchmarks.options import ROOT
from benchmarks.report.canvas import OURS
from benchmarks.report.store import read
from benchmarks.report.tables import BASELINE, reason_of
from benchmarks.sections.model import AS_GIVEN
from benchmarks.shapes import SHAPES
from bert_fast.io import atomic_write

SOURCES = (
    "bench_amd-epyc_minilm_float32_2026-11-25_second.json",
    "bench_amd-epyc_minilm_bfloat16_2026-11-25.json",
    "bench_amd-epyc_minilm_int8_2026-11-25_second.json",
    "bench_amd-epyc_base_float32_2026-11-25.json",
    "bench_amd-epyc_base_bfloat16_2026-11-25.json",
    "bench_amd-epyc_base_int8_2026-11-25.json",
)
BEGIN, END = "<!-- benchmarks.readme_table: begin -->", "<!-- benchmarks.readme_table: end -->"
_HEAD = (
    "model", "dtype", "texts (tokens each)", "`transformers`, as handed in", "best of all others",
    "bert_fast, as handed in", "x best", "x `transformers`",
)  # fmt: skip
_NAMES = 3  # columns that are names; the others are numbers
# Whose versions a reader needs, and who must have been timed for it. nncf is what makes OpenVINO's int8.
_PACKAGES = {
    "torch": OURS, "transformers": OURS, "sentence-transformers": "sentence-transformers",
    "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "nncf": "OpenVINO", "ctranslate2": "CTranslate2",
}  # fmt: skip
Facts = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One mix of texts: tokens a second by (peer, order), of everybody who was right."""

    model: str
    dtype: str
    texts: str
    found: dict[tuple[str, str], float]

    def cells(self) -> tuple[str, ...]:
        """As the table shows them."""
        ours, base = self.found[OURS, AS_GIVEN], self.found.get((BASELINE, AS_GIVEN))
        (who, order), best = max(self._others().items(), key=lambda item: item[1])
        return (
            self.model, self.dtype, self.texts, _rounded(base) if base else "-", f"{_rounded(best)} ({who}, {order})",
            _rounded(ours), f"{ours / best:.2f}", f"{ours / base:.2f}" if base else "-",
        )  # fmt: skip

    def _others(self) -> dict[tuple[str, str], float]:
        return {key: rate for key, rate in self.found.items() if not _is_ours(key[0])}

    def complete(self) -> bool:
        """Whether there is something to compare."""
        return (OURS, AS_GIVEN) in self.found and bool(self._others())


def _is_ours(peer: str) -> bool:
    return peer == OURS or peer.startswith(f"{OURS},")  # "bert_fast, packed", too


def table(folder: Path = ROOT / "benchmarks" / "results", sources: Sequence[str] = SOURCES) -> str:
    """The table as Markdown, by model, then dtype, then mix of texts; under it processor, threads and versions.

    Raises:
        ValueError: a file is no measurement of encoders on a CPU, or two hold the same.
    """
    facts = {name: read(folder / name) for name in sources}
    lines: dict[tuple[str, str, str], tuple[Line, str]] = {}
    for name, report in facts.items():
        for line in lines_of(report, name):
            key = (line.model, line.dtype, line.texts)
            if key in lines:
                both = f"{lines[key][1]} and {name} both hold {', '.join(key)}"
                raise ValueError(f"{both}: SOURCES must name one of them")
            lines[key] = line, name
    ordered = sorted((line for line, _ in lines.values()), key=_place)  # stable: mixes as the suite has them
    marks = ["---" if i < _NAMES else "---:" for i in range(len(_HEAD))]
    rows = [_row(_HEAD), "|" + "|".join(marks) + "|", *(_row(line.cells()) for line in ordered)]
    return "\n".join([*rows, "", conditions(list(facts.values()))])


def lines_of(report: Facts, name: str) -> list[Line]:
    """Every mix of texts that ``report``, the file ``name``, holds ours and others for.

    Raises:
        ValueError: it holds none, or is no measurement on a CPU.
    """
    settings = report["settings"]
    if settings["device"] != "cpu" or settings["tiny"]:
        raise ValueError(f"{name} must be a measurement on a CPU, not {'tiny' if settings['tiny'] else 'on a GPU'}")
    lines: dict[str, Line] = {}
    for row in report["sections"].get("model", []):
        workload = row.get("workload", "")
        if "tokens_per_s" not in row or reason_of(row) or workload.startswith("padding"):
            continue
        texts = f"{workload.removeprefix('mix ').removeprefix('texts ')} ({row['mean_tokens']:.0f})"
        line = lines.setdefault(workload, Line(row["model"], row["dtype"], texts, {}))
        line.found[row["peer"], row["order"]] = row["tokens_per_s"]
    complete = [line for line in lines.values() if line.complete()]
    if not complete:
        raise ValueError(f"{name} must hold tokens a second of {OURS}, {AS_GIVEN}, and of others over the same texts")
    return complete


def conditions(reports: Sequence[Facts]) -> str:
    """One paragraph: what was measured on what; where the files differ, each value with whose it is."""
    processor = _shared(reports, _processor)
    threads = _shared(reports, lambda r: f"{r['settings']['threads']} CPU threads")
    batch = _shared(reports, lambda r: f"batches of {r['settings']['batch_size']}")
    versions = [
        f"{package} {found}"
        for package, peer in _PACKAGES.items()
        if (found := _shared(reports, functools.partial(_version, package, peer)))
    ]
    models = dict.fromkeys(r["settings"]["model"] for r in sorted(reports, key=lambda r: _size(r["settings"]["model"])))
    sizes = "".join(
        f" {model}: random weights, {shape['num_hidden_layers']} layers of {shape['hidden_size']}."
        for model in models
        if (shape := SHAPES.get(model))
    )
    said = f"Tokens a second. {processor}, {threads}, {batch}; {', '.join(versions)}.{sizes}"
    return textwrap.fill(said, 120, break_long_words=False, break_on_hyphens=False)


def _processor(report: Facts) -> str:
    env = report["environment"]
    return f"{env['processor']} ({', '.join(env['instructions'])})"


def _version(package: str, peer: str, report: Facts) -> str:
    """Empty where the peer was not timed, as one that has no such dtype, or nncf where it has nothing to do."""
    timed = any("tokens_per_s" in row and row["peer"] == peer for row in report["sections"]["model"])
    if not timed or (package == "nncf" and report["settings"]["dtype"] != "int8"):
        return ""
    return report["environment"]["versions"].get(package, "").partition("+")[0]


def _shared(reports: Sequence[Facts], fact: Callable[[Facts], str]) -> str:
    """The one value of all reports that have any, or, where they differ, each with whose it is."""
    found: dict[str, dict[str, None]] = {}
    for report in reports:
        settings = report["settings"]
        if value := fact(report):
            found.setdefault(value, {})[f"{settings['model']} {settings['dtype']}"] = None
    if len(found) < 2:
        return "".join(found)
    return " or ".join(f"{value} ({', '.join(whose)})" for value, whose in found.items())


def _place(line: Line) -> tuple[int, str, int]:
    return _size(line.model), line.model, DTYPES.index(line.dtype)


def _size(model: str) -> int:
    return list(SHAPES).index(model) if model in SHAPES else len(SHAPES)


def _rounded(rate: float) -> str:
    """Three digits, which is more than two measurements agree in."""
    return f"{float(f'{rate:.3g}'):,.0f}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


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
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"readme_table: {error}", file=sys.stderr)
        sys.exit(2)
