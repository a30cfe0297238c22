"""The tests that only a GPU can answer, and the kernels' own with real launches; every failure with its text."""

from __future__ import annotations

import collections
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.pytest_record import LOST
from benchmarks.options import ROOT, Options

_LARGE = "tests/gpu/test_large.py"
_PROCESSES = 8  # at most, beside each other: each keeps a CUDA context on the GPU
_SESSIONS = 6  # at most, one after another, where tests take the GPU with them
_LIMIT = 120  # seconds a test may take, where pytest-timeout is there to say so
# Compiling for other GPUs, which needs none, is left to the ordinary test run.
_ELSEWHERE = ("--ignore-glob=*compiled*", "--ignore=tests/kernels/test_resident.py", "--ignore=tests/csrc")
# A file that cannot be collected is recorded, and does not keep the others from running.
_PYTEST = ("-q", "-p", "benchmarks.gpu.pytest_record", "-p", "no:cacheprovider", "--continue-on-collection-errors")

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
    parts = max(1, min(_PROCESSES, (os.cpu_count() or 1) // 2)) if many else 1
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = [_Shard(arguments, f"{part}/{parts}", Path(folder) / f"{part}.jsonl") for part in range(parts)]
        try:
            for row in _follow(shards):
                key = row["test"], row["outcome"]
                # A file that cannot be collected fails in every shard.
                if key not in rows and row["outcome"] == "failed":
                    yield row
                rows.setdefault(key, row)
        finally:
            for shard in shards:
                shard.stop()
    codes = [shard.codes for shard in shards]
    yield _summary(list(rows.values())) | {"exit": codes}
    failed = sum(outcome == "failed" for _, outcome in rows)
    if failed or any(ended[-1] not in (0, 5) for ended in codes):
        raise RuntimeError(f"{failed} tests failed; pytest ended with {codes}: its output is in the log")
    if not rows and not options.rehearse:
        raise RuntimeError("no test was collected")


def _follow(shards: list[_Shard]) -> Iterator[dict[str, Any]]:
    """The rows that the shards write, as they write them, until all have ended."""
    running = list(shards)
    while running:
        over = [shard.over() for shard in running]
        for shard in running:
            yield from shard.rows()
        running = [shard for shard, ended in zip(running, over, strict=True) if not ended]
        time.sleep(0.2)


class _Shard:
    """One part of the tests, in a process of pytest and in those that follow where a test took the GPU with it.

    Most of the time goes to compiling kernels, one at a time in each process: the parts run beside each other.
    """

    def __init__(self, arguments: tuple[str, ...], share: str, record: Path) -> None:
        limit = [f"--timeout={_LIMIT}"] if importlib.util.find_spec("pytest_timeout") else []
        self._command = [sys.executable, "-m", "pytest", *_PYTEST, *arguments, *limit]
        files = {"BERT_FAST_TEST_RECORD": str(record), "BERT_FAST_TEST_SHARD": share}
        files["BERT_FAST_EMULATOR"] = str(record.parent / "emulated")  # one build for all of them
        self._environment = {**os.environ, **files, "OMP_NUM_THREADS": "1"}
        record.touch()
        self._file, self._rest = record.open(encoding="utf-8"), ""
        self.codes: list[int] = []
        self._session = self._start()

    def _start(self) -> subprocess.Popen:
        return subprocess.Popen(self._command, cwd=ROOT, env=self._environment)

    def over(self) -> bool:
        """Whether it has ended; a session that lost the GPU is followed by another. Rows may still be unread."""
        code = self._session.poll()
        if code is None:
            return False
        self.codes.append(code)
        if code != LOST or len(self.codes) == _SESSIONS:
            return True
        self._session = self._start()
        return False

    def rows(self) -> Iterator[dict[str, Any]]:
        """What was written since it was last asked."""
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        yield from map(json.loads, lines)

    def stop(self) -> None:
        """Kill what still runs: there was an error here."""
        self._session.kill()
        self._session.wait()
        self._file.close()


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    skipped = collections.Counter(row["text"] for row in rows if row["outcome"] == "skipped")
    slowest = sorted(rows, key=lambda row: -row["seconds"])[:8]
    return {
        "counts": dict(collections.Counter(row["outcome"] for row in rows)),
        "skipped because": dict(skipped.most_common(20)),
        "slowest": [[row["test"], row["seconds"]] for row in slowest],
    }
