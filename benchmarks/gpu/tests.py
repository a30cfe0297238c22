"""The tests that only a GPU can answer, and the kernels' own with real launches; every failure with its text."""

from __future__ import annotations

import collections
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from benchmarks.gpu.plan import ROOT, Options
from benchmarks.gpu.pytest_record import LOST

_LARGE = "tests/gpu/test_large.py"
_SESSIONS = 6  # at most, one after another, where tests take the GPU with them
_LIMIT = 120  # seconds a test may take, where pytest-timeout is there to say so
# Compiling for other GPUs, which needs none, is left to the ordinary test run.
_ELSEWHERE = ("--ignore-glob=*compiled*", "--ignore=tests/csrc")

# What each item runs; with True in as many processes as the machine bears.
_ITEMS: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpu": (("tests", "-m", "gpu", f"--ignore={_LARGE}", *_ELSEWHERE), True),
    "kernels": (("tests/kernels", "tests/ops", *_ELSEWHERE), True),
    "extension": (("tests/csrc", "-m", "gpu"), False),
    "large": ((_LARGE,), False),
}
# Two are enough: the others differ in nothing but what they select.
_REHEARSAL = {"kernels": ("tests/kernels/test_common.py", "-k", "threshold"), "large": (_LARGE,)}


def run(name: str, options: Options) -> Iterator[dict[str, Any]]:
    """A row per test that failed, as it happens; then the counts, why tests were skipped, and the slowest."""
    arguments, many = _ITEMS[name]
    if options.rehearse:
        if name not in _REHEARSAL:
            yield {"not run": f"a rehearsal runs {' and '.join(_REHEARSAL)}"}
            return
        arguments, many = _REHEARSAL[name], False
    rows: list[dict[str, Any]] = []
    codes: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "tests.jsonl"
        record.touch()
        with record.open(encoding="utf-8") as file:
            while not codes or (codes[-1] == LOST and len(codes) < _SESSIONS):
                for row in _follow(_session(list(arguments), _processes(many), record), file, codes):
                    rows.append(row)
                    if row["outcome"] == "failed":
                        yield row
    yield _summary(rows) | {"exit": codes}
    failed = sum(row["outcome"] == "failed" for row in rows)
    if failed or codes[-1] not in (0, 5):
        raise RuntimeError(f"{failed} tests failed; pytest ended with {codes}: its output is in the log")
    if codes[-1] == 5 and not rows and not options.rehearse:
        raise RuntimeError("no test was collected")


def _follow(session: subprocess.Popen, file: TextIO, codes: list[int]) -> Iterator[dict[str, Any]]:
    """The rows a session writes, as it writes them; its exit status goes to ``codes``."""
    rest = ""
    while True:
        code = session.poll()
        *lines, rest = (rest + file.read()).split("\n")
        yield from map(json.loads, lines)
        if code is not None:
            codes.append(code)
            return
        time.sleep(0.2)


def _session(arguments: list[str], processes: list[str], record: Path) -> subprocess.Popen:
    limit = [f"--timeout={_LIMIT}"] if importlib.util.find_spec("pytest_timeout") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu.pytest_record", "-p", "no:cacheprovider"]
    done = shutil.copy(record, record.with_name("done.jsonl"))
    files = {"BERT_FAST_TEST_RECORD": str(record), "BERT_FAST_TEST_DONE": str(done)}
    environment = {**os.environ, **files, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *arguments, *limit, *processes], cwd=ROOT, env=environment)


def _processes(many: bool) -> list[str]:
    """pytest-xdist, where it is installed: most of the time goes to compiling kernels."""
    if not many or importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(max(1, min(12, (os.cpu_count() or 2) - 2)))]


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    skipped = collections.Counter(row["text"] for row in rows if row["outcome"] == "skipped")
    slowest = sorted(rows, key=lambda row: -row["seconds"])[:8]
    return {
        "counts": dict(collections.Counter(row["outcome"] for row in rows)),
        "skipped because": dict(skipped.most_common(20)),
        "slowest": [[row["test"], row["seconds"]] for row in slowest],
    }
