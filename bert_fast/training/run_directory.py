"""What a run leaves beside its checkpoints: configuration, command, environment, metrics and a plot."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from bert_fast import io

RUNNING = ("keep", "log_every", "save_every", "num_workers", "shard", "gradient_checkpointing", "mixed_precision")
"""Settings that say how a run is run, and may change in its course."""
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

    def check(self) -> None:
        """Raises ValueError where a run would write over what is none: a file, or a folder such as a model's."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: a run needs a folder")
        if (self.path / "config.json").exists() and not self._command.exists():
            raise ValueError(f"{self.path} holds a config.json, but no run: give a run a folder of its own")

    def check_same(self, config: Mapping[str, Any], free: Collection[str], files: Collection[str]) -> None:
        """Raises ValueError where checkpoints are of a run that was told something else.

        Args:
            config: what this start is told, as :meth:`begin` will write it.
            free: names that may change, such as those of how often something is written.
            files: names that hold paths, of which only the last part has to be the same.
        """
        written = self.path / "config.json"
        if not written.is_file() or not any(self.path.glob("checkpoints/step-*")):
            return
        before, now = _parsed(written.read_bytes(), str(written)), json.loads(_as_json(config))
        for name, value in now.items():
            if name in free or name not in before:
                continue
            then = before[name]
            if (_last_parts(then) != _last_parts(value)) if name in files else then != value:
                raise ValueError(
                    f"the run in {self.path} began with {name}={then!r:.200}, not {value!r:.200}: go on with what it "
                    f"was begun with, or give another folder (to train its result on, {self.path / 'model'} as model)"
                )

    @property
    def _command(self) -> Path:
        return self.path / "command.txt"

    def begin(self, config: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> None:
        """Make the directory and write what is known at the start; ``facts`` join ``environment.json``.

        Raises:
            ValueError: the directory is something else's.
        """
        self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self._command, "a", encoding="utf-8") as file:  # first: by it a run's folder is known
            file.write(shlex.join([sys.executable, *sys.orig_argv[1:]]) + "\n")
        if config is not None:
            io.atomic_write(self.path / "config.json", (_as_json(config) + "\n").encode())
        described = json.dumps({**environment(), **facts}, indent=2)
        io.atomic_write(self.path / "environment.json", (described + "\n").encode())

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
        where = f"{self.metrics_file}, line"
        return [_parsed(line, f"{where} {n}") for n, line in enumerate(lines[:-1], 1) if line.strip()]

    def forget_after(self, step: int) -> None:
        """Drop the metrics of later steps, which will be measured again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        if self.metrics_file.is_file():
            io.atomic_write(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _as_json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, default=str)


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error


def _last_parts(paths: Any) -> Any:
    if isinstance(paths, list):
        return [_last_parts(path) for path in paths]
    return Path(paths).name if isinstance(paths, str) else paths


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
