"""Finds launch parameters for the GPU that is here, and writes them into the checked-in table.

    python -m benchmarks.tune [--op attention_forward_loop ...] [--dtype bfloat16] [--dry-run] [--json FILE]

Every candidate is timed on the workloads of benchmarks/tuning/grid.py, through the ops; the best one is held against
float64 and timed again before it is believed. Only this GPU's entries change, and only where they win by 2%. Run the
tests that compile the kernels afterwards: they hold every entry to no spills.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.report import atomic_write
from benchmarks.options import ROOT, Options
from benchmarks.tuning import table
from benchmarks.tuning.grid import SEARCHES

TABLE = ROOT / "kernels" / "launch.py"


def main(arguments: list[str] | None = None) -> int:
    """Tune the kernels named, or all; 0 unless the GPU was lost."""
    chosen = _parser().parse_args(arguments)
    if chosen.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    # Imported late: whether kernels are interpreted is settled when they are imported.
    from benchmarks.tuning.bench import Bench, Lost
    from benchmarks.tuning.search import Outcome, tune

    bench = Bench(Options(chosen.rehearse, quick=False, dtype=chosen.dtype))
    if chosen.ahead:
        _compile(bench, chosen.op, *map(int, chosen.ahead.split("/")))
        return 0
    if not chosen.rehearse:
        _compile_ahead(chosen.op, chosen.dtype)
    outcomes: list[Outcome] = []
    lost = None
    for kernel in chosen.op:
        try:
            outcomes += tune(kernel, _limited(kernel, chosen.candidates), bench, lambda words: print(words, flush=True))
        except Lost as error:
            lost = error
            outcomes += getattr(error, "outcomes", [])
            print(f"stopped at {kernel}: the GPU was lost ({error}); what was found before is kept", flush=True)
            break
    changes = {}
    for kernel in {outcome.kernel: None for outcome in outcomes if outcome.changed}:
        changes[kernel] = [(o.limits, o.after) for o in outcomes if o.kernel == kernel]
    if chosen.json:
        found = {"capability": bench.capability, "outcomes": [vars(outcome) for outcome in outcomes]}
        atomic_write(chosen.json, (json.dumps(found, indent=1) + "\n").encode())
    _show(outcomes)
    if changes and not chosen.dry_run:
        table.write(chosen.table, changes, bench.capability)
        print(f"{chosen.table}: {', '.join(changes)} rewritten for compute capability {bench.capability}")
    return 1 if lost else 0


def _limited(kernel: str, most: int | None):
    """The kernel's search, or only its first candidates and workload: enough for a rehearsal."""
    from benchmarks.tuning.grid import Search

    search = SEARCHES[kernel]
    if most is None:
        return search
    return Search({name: options[:most] for name, options in search.values.items()}, search.workloads[:1])


def _compile_ahead(kernels: list[str], dtype: str) -> None:
    """Compile the candidates in as many processes as there are cores."""
    count = max(1, (os.cpu_count() or 2) - 2)
    command = [sys.executable, "-m", "benchmarks.tune", "--dtype", dtype, "--op", *kernels]
    started = [
        subprocess.Popen([*command, "--ahead", f"{index}/{count}"], cwd=ROOT, stdout=subprocess.DEVNULL)
        for index in range(count)
    ]
    for process in started:
        process.wait()


def _compile(bench, kernels: list[str], index: int, count: int) -> None:
    number = 0
    for kernel in kernels:
        search, rules = SEARCHES[kernel], bench.rules(kernel)
        for place, (limits, current) in enumerate(rules):
            work = [workload for workload in search.workloads if place in bench.rules_used(workload, kernel)]
            for candidate in search.candidates(current):
                number += 1
                if number % count != index:
                    continue
                changed = [*rules[:place], (limits, candidate), *rules[place + 1 :]]
                with bench.installed(kernel, changed):
                    for workload in work:
                        try:
                            bench.compile(workload)
                        except Exception as error:  # noqa: BLE001 - the search will meet it again and note it
                            print(f"{kernel} {candidate}: {error}", file=sys.stderr)


def _show(outcomes) -> None:
    for outcome in outcomes:
        what = f"{outcome.share:.3f} of the time" if outcome.changed else outcome.note or "stays as it is"
        print(f"{outcome.kernel:30s} {outcome.limits!s:40s} {what}")
        if outcome.changed:
            print(f"    before {outcome.before}\n    after  {outcome.after}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", choices=list(SEARCHES), default=list(SEARCHES), metavar="KERNEL")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--dry-run", action="store_true", help="show what would be written, and write nothing")
    parser.add_argument("--json", type=Path, help="everything that was tried")
    parser.add_argument("--table", type=Path, default=TABLE, help="the table to rewrite (kernels/launch.py)")
    parser.add_argument("--candidates", type=int, help="try only so many values of each parameter, on one workload")
    parser.add_argument("--rehearse", action="store_true", help="in Triton's interpreter, on the CPU, with tiny sizes")
    parser.add_argument("--ahead", metavar="INDEX/COUNT", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
