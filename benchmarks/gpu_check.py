"""Builds, tests and measures everything on a CUDA machine, in one command of under ten minutes, without a network.

    python -m benchmarks.gpu_check [--out DIR] [--build] [--quick] [--minutes 9] [--only kernels,model]

DIR gets ``gpu_check.json`` (whole after every row), ``log.txt`` (what everything printed) and ``table.txt``. Sections:
machine, build (with --build), doctor, kernels, model, tests, sanitizer. ``--rehearse`` runs all of it on a CPU with
tiny sizes and Triton's interpreter: every line but the GPU's clock, and nothing that is worth reading as a measurement.

The exit status is 0 if every item ended well, whatever the speeds; 1 if not.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from benchmarks.gpu.plan import Item, Section, deadlines, selected
from benchmarks.gpu.report import Report
from benchmarks.gpu.summary import summarise, table
from benchmarks.gpu.supervise import Supervisor
from benchmarks.options import Options


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; 0 if every item ended well."""
    began = time.monotonic()
    chosen = _parser().parse_args(arguments)
    options = Options(chosen.rehearse, chosen.quick, chosen.dtype)
    try:
        sections = selected(chosen.only, build=chosen.build, quick=chosen.quick)
    except ValueError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "log.txt").write_bytes(b"")
    report = Report(chosen.out, options, sections)
    report.write()
    supervisor = Supervisor(report, options, chosen.out)
    signal.signal(signal.SIGTERM, _stopped)
    stopped = False
    try:
        _run(sections, supervisor, began, chosen.minutes * 60, one_worker=options.rehearse)
    except KeyboardInterrupt:
        stopped = True
    finally:
        supervisor.stop()
        report.summary = summarise(report)
        report.write()
    shown = table(report)
    (chosen.out / "table.txt").write_text(shown + "\n", encoding="utf-8")
    _print_machine(report)
    print(shown)
    print(f"{time.monotonic() - began:.0f} s; {report.path}" + ("; stopped before the end" if stopped else ""))
    return 0 if all(item["status"] == "ok" for item in report.items.values()) else 1


def _run(sections: list[Section], supervisor: Supervisor, began: float, seconds: float, one_worker: bool) -> None:
    """Every section in a fresh process; a rehearsal, whose point is the items, saves the time to start them."""
    if one_worker:
        items: tuple[Item, ...] = sum((section.items for section in sections), ())
        supervisor.run(items, began + seconds)
        return
    for section, end in zip(sections, deadlines(sections, seconds), strict=True):
        print(f"{time.monotonic() - began:5.0f} s  {section.name}", flush=True)
        supervisor.run(section.items, began + end)


def _print_machine(report: Report) -> None:
    for label in ("machine/facts", "machine/gpu", "machine/packages"):
        for row in report.rows(label):
            print(" ".join(f"{key}={value}" for key, value in row.items() if value is not None))
    print()


def _stopped(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu_check"), help="folder (build/gpu_check)")
    parser.add_argument("--build", action="store_true", help="first pip install --no-build-isolation --no-deps -e .")
    parser.add_argument("--quick", action="store_true", help="fewer ops and a quarter of the tokens")
    parser.add_argument("--minutes", type=float, default=9.0, help="the most the whole may take (9)")
    parser.add_argument("--only", type=lambda text: text.split(","), help="sections to run, separated by commas")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rehearse", action="store_true", help="everything small, on the CPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
