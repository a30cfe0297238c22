"""Watches the worker: kills what hangs, replaces what crashed, loses nothing of the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.plan import Item
from benchmarks.gpu.report import Report
from benchmarks.gpu.worker import LOST
from benchmarks.options import ROOT, Options

_POLL = 0.1
_STARTUP = 120.0  # seconds for a worker to import and start its first item


class Supervisor:
    """Runs items in worker processes and reports what they say.

    Args:
        report: where rows go.
        options: handed to the worker.
        folder: of the events and of ``log.txt``, which keeps all that the workers print.
        command: what starts a worker.
    """

    def __init__(self, report: Report, options: Options, folder: Path, command: list[str] | None = None) -> None:
        self._report, self._options = report, options
        self._events, self._log = folder / "events.jsonl", folder / "log.txt"
        self._command = command or [sys.executable, "-u", "-m", "benchmarks.gpu.worker"]
        self._process: subprocess.Popen | None = None

    def run(self, items: tuple[Item, ...], until: float) -> None:
        """Run ``items`` until all are over or ``time.monotonic()`` reaches ``until``."""
        pending = deque(items)
        while pending and time.monotonic() < until:
            self._start(pending)
            try:
                self._watch(pending, until)
            finally:
                self.stop()
        for item in pending:
            self._report.finish(item, "not run", 0.0, "no time was left")

    def stop(self) -> None:
        """Kill the worker and whatever it started; close the events."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):  # it ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._events.unlink(missing_ok=True)

    def _start(self, pending: deque[Item]) -> None:
        self._events.write_bytes(b"")
        arguments = ["--events", str(self._events), "--options", self._options.to_json()]
        environment = dict(os.environ)
        if self._options.rehearse:
            environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *arguments, *(item.label for item in pending)],
                cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env=environment,
            )  # fmt: skip

    def _watch(self, pending: deque[Item], until: float) -> None:
        """Follow one worker to its end. Every return leaves fewer items pending, or none."""
        began = time.monotonic()
        said = self._log.stat().st_size
        running = False
        with self._events.open("rb") as events:
            rest = b""
            while True:
                code = self._process.poll()
                rest += events.read()
                *lines, rest = rest.split(b"\n")
                for event in map(json.loads, lines):
                    if event["event"] == "start":
                        running, began = True, time.monotonic()
                    elif event["event"] == "row":
                        self._report.add_row(pending[0], event["row"])
                    else:
                        self._report.finish(pending.popleft(), event["status"], event["seconds"], event["error"])
                        running, began = False, time.monotonic()
                if not pending:
                    return
                passed = time.monotonic() - began
                if code is not None:
                    if running or code != LOST:
                        self._lost(pending, running, passed, self._words(code, said))
                    return
                limit = pending[0].seconds if running else _STARTUP
                if passed > limit or time.monotonic() > until:
                    why = f"killed after {passed:.0f} s: " + (
                        f"it may take {limit:.0f} s" if passed > limit else "the section's time was over"
                    )
                    self._report.finish(pending.popleft(), "timed out", passed, f"{why}\n{self._tail(said)}")
                    return
                time.sleep(_POLL)

    def _lost(self, pending: deque[Item], running: bool, passed: float, why: str) -> None:
        """The worker ended: the item it ran is lost, or all of them if it could not even start one."""
        for _ in range(1 if running else len(pending)):
            self._report.finish(pending.popleft(), "crashed", passed, why)

    def _words(self, code: int, said: int) -> str:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"the process ended with {how}\n{self._tail(said)}"

    def _tail(self, said: int, most: int = 6000) -> str:
        with self._log.open("rb") as log:
            log.seek(max(said, self._log.stat().st_size - most))
            return log.read().decode(errors="replace")
