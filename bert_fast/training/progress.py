"""How far a run is, and which of its evaluations was the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from accelerate import Accelerator
from torch import nn

Evaluate = Callable[[nn.Module, Accelerator], Mapping[str, float]]


@dataclass
class Progress:
    """Counted over all starts of a run: every checkpoint holds it.

    ``sums`` and ``since_log`` are the losses of the steps that no line of metrics tells of yet.
    """

    step: int = 0
    epoch: int = 0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    since_log: int = 0
    best: float | None = None
    best_step: int | None = None
    worse_since: int = 0


@dataclass(frozen=True)
class Evaluations:
    """When to evaluate, and what is better."""

    evaluate: Evaluate | None
    every: int | None
    best_metric: str | None
    patience: int | None

    def due(self, progress: Progress, ends_epoch: bool, last: bool) -> bool:
        """Whether to evaluate after this step."""
        if self.evaluate is None:
            return False
        return last or (ends_epoch if self.every is None else progress.step % self.every == 0)

    def judge(self, progress: Progress, metrics: Mapping[str, float]) -> bool:
        """Whether this evaluation is the best so far; ``progress`` is told.

        Raises:
            ValueError: the metric to judge by is not there.
        """
        if self.best_metric is None:
            return False
        name = self.best_metric.removeprefix("-")
        if name not in metrics:
            raise ValueError(f"best_metric is {name!r}, but the evaluation gave {', '.join(sorted(metrics))}")
        sign = -1 if self.best_metric.startswith("-") else 1
        value = float(metrics[name])
        better = value == value and (progress.best is None or sign * value > sign * progress.best)
        if better:
            progress.best, progress.best_step, progress.worse_since = value, progress.step, 0
        else:
            progress.worse_since += 1
        return better

    def exhausted(self, progress: Progress) -> bool:
        """Whether it is time to stop early."""
        return self.patience is not None and progress.worse_since >= self.patience
