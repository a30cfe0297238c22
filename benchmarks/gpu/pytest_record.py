"""A pytest plugin that writes every test's outcome to a file as it happens, so that a killed run loses nothing.

Loaded with ``-p benchmarks.gpu.pytest_record``; the file is named by ``BERT_FAST_TEST_RECORD``. Tests that are in it
already are left out: after a test has taken the GPU with it, the session ends and another one goes on behind that test.
``BERT_FAST_TEST_SHARD="i/n"`` leaves to this session the i-th of n parts, i from 0: n sessions run all.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import pytest

LOST = 17  # exit status: this process has lost the GPU
_LONGEST = 20_000  # characters of a failure's text


def recorded(path: Path) -> list[dict]:
    """What is in such a file; a line cut off by a kill is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def in_shard(test: str, shard: str) -> bool:
    """Whether a test belongs to part "i/n"; Python's own hash of a text differs from process to process."""
    part, parts = map(int, shard.split("/"))
    return zlib.crc32(test.encode()) % parts == part


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a session before this one has settled, and what is left to sessions beside it."""
    done = {row["test"] for row in recorded(Path(os.environ["BERT_FAST_TEST_RECORD"]))}
    shard = os.environ.get("BERT_FAST_TEST_SHARD", "0/1")
    kept, left_out = [], []
    for item in items:
        (kept if item.nodeid not in done and in_shard(item.nodeid, shard) else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before each test: if the one before took the GPU with it, end this process rather than fail all that follow."""
    if _gpu_lost():
        pytest.exit("the GPU no longer answers this process", returncode=LOST)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line a test: its call, or whatever stopped it before or after."""
    if report.when != "call" and report.passed:
        return
    row = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
    if report.failed:
        row["text"] = report.longreprtext[-_LONGEST:]
    elif report.skipped:
        reason = report.longrepr
        row["text"] = str(reason[2] if isinstance(reason, tuple) else reason)
    _append(row)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be collected is a failure, too."""
    if report.failed:
        _append({"test": report.nodeid, "outcome": "failed", "seconds": 0.0, "text": report.longreprtext[-_LONGEST:]})


def _append(row: dict) -> None:
    with open(os.environ["BERT_FAST_TEST_RECORD"], "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _gpu_lost() -> bool:
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:  # noqa: BLE001 - any failure means the same
        return True
    return False
