"""compute-sanitizer over small shapes of every Triton and CUDA kernel: memcheck, then racecheck."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.options import ROOT, Options

_FOUND = 86  # the exit status that says the tool found something
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: .*")
_CANNOT = ("Device not supported", "not supported on this", "Failed to initialize", "Internal Sanitizer Error")


def run(name: str, options: Options) -> Iterator[dict[str, Any]]:
    """Items "memcheck" and "racecheck", over everything in small_shapes.py."""
    program = [sys.executable, "-u", "-m", "benchmarks.gpu.small_shapes", "0/12" if options.rehearse else "0/1"]
    if name == "memcheck":
        # Without the tool first: what is compiled now need not be compiled under it, and it should be right alone.
        code, said = _start(program, {})
        yield {"without a tool": "ok" if code == 0 else said[-4000:]}
        if code:
            raise RuntimeError(f"the calls fail without any tool:\n{said[-4000:]}")
    found = sanitizer()
    if options.rehearse or found is None:
        yield {"tool": name, "not run": "needs a GPU" if options.rehearse else "compute-sanitizer was not found"}
        return
    # Every tensor gets its own allocation, so that a step beyond one is a step out of memory.
    arguments = ["--tool", name, "--error-exitcode", str(_FOUND), "--target-processes", "application-only"]
    arguments += ["--report-api-errors", "no"] if name == "memcheck" else []
    code, said = _start([found, *arguments, *program], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    summary = _SUMMARY.findall(said)
    row = {"tool": name, "exit": code, "summary": summary}
    if code == 0 and summary:
        yield row
        return
    yield row | {"output": _kept(said)}
    if not any(words in said for words in _CANNOT):
        raise RuntimeError(f"{name} found something, or did not end well: {summary or code}")


def sanitizer() -> str | None:
    """Where compute-sanitizer is; None if it is not."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [str(Path(home) / "bin") for home in homes if home]
    path = os.pathsep.join([os.environ.get("PATH", ""), *folders, "/usr/local/cuda/bin"])
    return shutil.which("compute-sanitizer", path=path)


def _start(command: list[str], more: dict[str, str]) -> tuple[int, str]:
    """Exit status and output, which also goes to the log line by line: a kill then leaves it there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    said = []
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **piped) as process:
        for line in process.stdout or ():
            said.append(line)
            print(line, end="", flush=True)
    return process.returncode, "".join(said)


def _kept(output: str, most: int = 12_000) -> str:
    """The beginning, where the first finding is, and the end."""
    return output if len(output) <= most else output[: most // 2] + "\n[...]\n" + output[-most // 2 :]
