"""This tree beside another revision of itself, in one run: two processes, one clock, rounds that alternate.

The other revision is installed into a folder of its own (its extension built from its sources); both processes then run
this tree's benchmarks over their own bert_fast, one at a time, so that a machine whose speed drifts treats both alike.
Changes of the working tree count as this tree's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.options import ROOT
from benchmarks.settings import Settings

_WORKER = ROOT / "benchmarks" / "against_worker.py"
_ROUNDS = 31
_LEAST = 9


def compare(revision: str, sections: Sequence[str], settings: Settings) -> Iterator[dict[str, Any]]:
    """A row per case of ours: both times, and by how much this tree is faster.

    Raises:
        ValueError: no such revision, this is no git checkout, or that revision does not install.
    """
    commit = resolved(revision)
    with tempfile.TemporaryDirectory(prefix="bert_fast_against_") as folder:
        then = Worker("then", installed(commit, Path(folder)), sections, settings)
        now = Worker("now", None, sections, settings)
        try:
            for case in [case for case in now.cases if case in then.cases]:
                yield {"case": case, "revision": commit} | _raced(case, then, now, settings.seconds)
            for worker in (then, now):
                for section, reason in worker.failed.items():
                    yield {"case": section, "revision": commit, "not run": f"{worker.name}: {reason}"}
            for case in sorted(set(now.cases) ^ set(then.cases)):
                where = "this tree" if case in now.cases else commit[:12]
                yield {"case": case, "revision": commit, "not run": f"only {where} runs it"}
        finally:
            then.stop()
            now.stop()


def _raced(case: str, then: Worker, now: Worker, seconds: float) -> dict[str, Any]:
    """Both in turn, who goes first turning too, for about ``seconds``."""
    try:
        for worker in (then, now):
            worker.time(case)  # warm
        pairs: list[tuple[float, float]] = []
        began = time.monotonic()
        while len(pairs) < _ROUNDS and (len(pairs) < _LEAST or time.monotonic() - began < seconds):
            if len(pairs) % 2:
                second = now.time(case)
                pairs.append((then.time(case), second))
            else:
                first = then.time(case)
                pairs.append((first, now.time(case)))
    except WorkerError as error:
        return {"error": str(error)}
    return paired(pairs)


def paired(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Medians in microseconds and the speed-up: a verdict only where the rounds agree, and the best times with them.

    Rounds alone may all meet other work on the machine in one of the two; the best times are those that met none.
    """
    ratios = sorted(then / now for then, now in pairs)
    low, high = ratios[round(0.2 * (len(ratios) - 1))], ratios[round(0.8 * (len(ratios) - 1))]
    best = min(then for then, _ in pairs) / min(now for _, now in pairs)
    verdict = "faster" if min(low, best) > 1.01 else "SLOWER" if max(high, best) < 0.99 else "same"
    return {
        "then_us": 1e6 * statistics.median(then for then, _ in pairs),
        "now_us": 1e6 * statistics.median(now for _, now in pairs),
        "speedup": statistics.median(ratios), "best": best, "low": low, "high": high, "rounds": len(pairs),
        "verdict": verdict,
    }  # fmt: skip


def resolved(revision: str) -> str:
    """The commit that a revision names.

    Raises:
        ValueError: there is none.
    """
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"--against must be a revision of the checkout {ROOT.name}, not {revision!r}")
    return done.stdout.strip()


def installed(commit: str, folder: Path) -> Path:
    """The folder with that revision's package, its extension built as here.

    Raises:
        ValueError: it does not install; the end of pip's output.
    """
    source, target = folder / "source", folder / "site"
    source.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    if _has_build_tools():
        pip.insert(5, "--no-build-isolation")
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"revision {commit[:12]} does not install: {(done.stdout + done.stderr).strip()[-1500:]}")
    return target


def _has_build_tools() -> bool:
    import importlib.util

    return all(importlib.util.find_spec(name) for name in ("pybind11", "setuptools", "wheel"))


class WorkerError(ValueError):
    """A worker could not do what it was asked; the message holds its own."""


class Worker:
    """A process with one revision's bert_fast; it answers a line of JSON to a line of JSON."""

    def __init__(self, name: str, site: Path | None, sections: Sequence[str], settings: Settings) -> None:
        self.name = name
        environment = dict(os.environ)
        if site is not None:
            environment["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [environment.get("PYTHONPATH")])])
        # What the process says in its distress; a pipe that nobody reads would make it wait.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER)], env=environment, cwd=tempfile.gettempdir(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        asked = settings.plain() | {"model": settings.model, "texts": settings.texts and str(settings.texts.resolve())}
        try:
            answer = self._ask({"sections": list(sections), "settings": asked})
        except WorkerError:
            self.stop()
            raise
        self.cases: list[str] = answer["cases"]
        self.failed: dict[str, str] = answer["failed"]
        self.package: str = answer["package"]
        if site is not None and not Path(self.package).is_relative_to(site):
            self.stop()
            raise WorkerError(f"the other revision's process imported {self.package}")

    def time(self, case: str) -> float:
        """Seconds of one run.

        Raises:
            WorkerError: it did not run.
        """
        answer = self._ask({"case": case})
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return float(answer["seconds"])

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(question, default=str) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or ["it said nothing"]
            raise WorkerError(f"the process of {self.name} ended: {said[-1][:500]}")
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
