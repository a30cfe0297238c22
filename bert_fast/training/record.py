"""What a run writes, by the main process alone: lines of metrics, checkpoints, and at the end the model and a plot."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from bert_fast.training.checkpointing import Checkpoints
from bert_fast.training.plot import plot
from bert_fast.training.run_directory import RunDirectory

Callback = Callable[[Mapping[str, Any]], None]


class Record:
    """The files of a run in ``run_dir``; with None there are none, and only ``callbacks`` hear of metrics."""

    def __init__(
        self, accelerator: Accelerator, run_dir: str | os.PathLike[str] | None, keep: int, callbacks: Sequence[Callback]
    ) -> None:
        self.main = accelerator.is_main_process
        self.wait = accelerator.wait_for_everyone
        self.facts = {
            "processes": accelerator.num_processes,
            "device": str(accelerator.device),
            "mixed_precision": accelerator.mixed_precision,
        }
        self.directory = None if run_dir is None else RunDirectory(run_dir)
        self.checkpoints = None if run_dir is None else Checkpoints(Path(run_dir) / "checkpoints", keep)
        self.callbacks = callbacks

    def begin(self, resume: bool, config: Mapping[str, Any] | None) -> Path | None:
        """Write what is known at the start; the newest checkpoint, if there is one.

        Raises:
            ValueError: there is one, and ``resume`` is off.
        """
        if self.directory is None or self.checkpoints is None:
            return None
        steps = self.checkpoints.steps()
        if steps and not resume:
            raise ValueError(
                f"{self.directory.path} holds a run of {steps[-1]} steps: pass resume=True, or give another run_dir"
            )
        if self.main:
            self.checkpoints.remove_unfinished()
            self.directory.begin(config, self.facts)
            self.directory.forget_after(steps[-1] if steps else 0)
        self.wait()
        return self.checkpoints.path(steps[-1]) if steps else None

    def write(self, line: Mapping[str, Any]) -> None:
        """A line of metrics."""
        if not self.main:
            return
        if self.directory is not None:
            self.directory.append(line)
        for callback in self.callbacks:
            callback(line)

    def end(self, model: nn.Module, weights: Mapping[str, Any]) -> None:
        """The trained model, for ``from_pretrained`` where it has ``save_pretrained``, and the plot."""
        if self.directory is not None and self.main:
            if hasattr(model, "save_pretrained"):
                model.save_pretrained(self.directory.path / "model", state_dict=dict(weights))
            self.draw()
        self.wait()

    def draw(self) -> None:
        """The plot of all metrics so far."""
        if self.directory is None or not self.main:
            return
        try:
            plot(self.directory.metrics(), self.directory.path / "plot.png")
        except ImportError as error:
            print(error, file=sys.stderr)


class Clock:
    """Seconds of training, without those of evaluating and saving."""

    def __init__(self) -> None:
        self._since, self._passed = time.perf_counter(), 0.0

    def pause(self) -> None:
        """Stop counting."""
        self._passed += time.perf_counter() - self._since

    def go_on(self) -> None:
        """Count again."""
        self._since = time.perf_counter()

    def lap(self) -> float:
        """The seconds since the last lap."""
        self.pause()
        seconds, self._passed = self._passed, 0.0
        self.go_on()
        return seconds
