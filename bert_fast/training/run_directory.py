"""What a run leaves beside its checkpoints: configuration, command, environment, metrics and a plot."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bert_fast import io

_PACKAGES = ("bert-fast", "torch", "accelerate", "transformers", "tokenizers", "numpy", "triton")


class RunDirectory:
    """The files of a run.

    - ``config.json``: as given. ``command.txt``: a line for every start. ``environment.json``: of the last start.
    - ``metrics.jsonl``: a line for every time something was measured, by step; see :meth:`append`.
    - ``plot.png``: see :mod:`bert_fast.training.plot`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metrics_file = self.path / "metrics.jsonl"

    def begin(self, config: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> None:
        """Make the directory and write what is known at the start; ``facts`` join ``environment.json``."""
        self.path.mkdir(parents=True, exist_ok=True)
        if config is not None:
            io.atomic_write(self.path / "config.json", (json.dumps(config, indent=2, default=str) + "\n").encode())
        described = json.dumps({**environment(), **facts}, indent=2)
        io.atomic_write(self.path / "environment.json", (described + "\n").encode())
        with open(self.path / "command.txt", "a", encoding="utf-8") as file:
            file.write(shlex.join([sys.executable, *sys.orig_argv[1:]]) + "\n")

    def append(self, values: Mapping[str, Any]) -> None:
        """A line of ``metrics.jsonl``; numbers that JSON does not have (NaN, infinities) become null."""
        line = json.dumps({name: _plain(value) for name, value in values.items()}, allow_nan=False)
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def synchronize(self) -> None:
        """Force the metrics to disk: a checkpoint that is there must find all that led to it."""
        if self.metrics_file.is_file():
            io.fsync(self.metrics_file)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` that are whole: a process that is killed may leave half a line."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1] if line.strip()]

    def forget_after(self, step: int) -> None:
        """Drop the metrics of later steps, which will be measured again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        if self.metrics_file.is_file():
            io.atomic_write(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept).encode())


def environment() -> dict[str, Any]:
    """Processor, devices and versions, as JSON holds them."""
    cuda = torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())] if cuda else [],
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor) or hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
