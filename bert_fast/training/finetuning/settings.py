"""What a fine-tuning run can be told, whether in Python, by flags or by a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bert_fast.training.options import check_at_least, check_types
from bert_fast.training.tasks import TASKS, Task, task_from

READING = ("format", "columns", "header", "delimiter", "quotes", "on_bad_row")
"""The options of ``read_rows``, for the rows to train on and to evaluate on."""


@dataclass(frozen=True)
class FinetuneSettings:
    """How to fine-tune. The defaults are those of `transformers`' examples, with BERT's warm-up.

    Args:
        epochs, steps: how far to train; whichever comes first.
        batch_size: rows of a batch, over all processes (of questions: windows).
        max_tokens: the most tokens of a batch, over all processes.
        group_by_length: batches of similar lengths. Nothing is padded anyhow; it makes batches' tokens more equal.
        max_length: the most tokens of a sequence; None: 384 for questions, else what the model takes.
        learning_rate, weight_decay: of AdamW; biases and LayerNorms do not decay.
        warmup: the share of steps in which the rate rises, before it falls to 0 along a line.
        max_grad_norm: clips the gradient's 2-norm; None: no clipping.
        gradient_accumulation: batches to a step.
        class_weights: for one label per row or token: "balanced", a weight by label's name, or one for each.
        dropout: of hidden states and attention; None: what the checkpoint says.
        evaluate_every: steps between evaluations; None: after every epoch.
        best_metric: by which the best checkpoint is kept, "-eval_loss" for the lowest loss; None: the task's.
        early_stopping: stop after so many evaluations without a better one.
        eval_max_tokens: of a batch when evaluating.
        save_every: steps between checkpoints; None: after every epoch.
        keep, log_every: as :func:`bert_fast.training.fit` has them.
        seed: of the order of rows, the new head and dropout.
        mixed_precision: "no", "bf16" or "fp16".
        gradient_checkpointing, shard: as :func:`bert_fast.training.fit` has them.
        num_workers: processes that make batches.
    """

    epochs: int | None = 3
    steps: int | None = None
    batch_size: int | None = 32
    max_tokens: int | None = None
    group_by_length: bool = False
    max_length: int | None = None
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_grad_norm: float | None = 1.0
    gradient_accumulation: int = 1
    class_weights: str | Mapping[str, float] | list[float] | None = None
    dropout: float | None = None
    evaluate_every: int | None = None
    best_metric: str | None = None
    early_stopping: int | None = None
    eval_max_tokens: int | None = None
    save_every: int | None = None
    keep: int = 2
    log_every: int = 10
    seed: int = 0
    mixed_precision: str | None = None
    gradient_checkpointing: bool = False
    shard: bool = False
    num_workers: int = 0

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        check_at_least(1, {name: getattr(self, name) for name in _COUNTS})
        check_at_least(0, {"num_workers": self.num_workers, "seed": self.seed})
        if self.epochs is None and self.steps is None:
            raise ValueError("give epochs, steps or both")
        if self.batch_size is None and self.max_tokens is None:
            raise ValueError("give batch_size, max_tokens or both")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, not {self.seed}")
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, not {value!r}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0 or None, not {self.max_grad_norm!r}")
        if self.mixed_precision not in (None, "no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision must be 'no', 'bf16' or 'fp16', not {self.mixed_precision!r}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be a share of all steps, 0 to 1, not {self.warmup!r}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")


_COUNTS = (
    "epochs",
    "steps",
    "batch_size",
    "max_tokens",
    "max_length",
    "gradient_accumulation",
    "evaluate_every",
    "early_stopping",
    "eval_max_tokens",
    "save_every",
    "keep",
    "log_every",
)
NAMES = tuple(field.name for field in fields(FinetuneSettings))


def sorted_out(task: str | Task, options: Mapping[str, Any]) -> tuple[Task, FinetuneSettings, dict[str, Any]]:
    """Options, given together, as the task, the settings and what ``read_rows`` is told.

    Raises:
        ValueError: an option that none of them has; the message lists those there are.
    """
    kind = task if isinstance(task, Task) else TASKS.get(task)
    of_task = [] if kind is None else kind.options()
    unknown = [name for name in options if name not in (*of_task, *NAMES, *READING)]
    if unknown and kind is not None:
        raise ValueError(
            f"unknown option {unknown[0]!r}. Of the task {kind.name!r}: {', '.join(of_task)}. Of training: "
            f"{', '.join(NAMES)}. Of reading: {', '.join(READING)}"
        )
    chosen = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items() if name in of_task}
    made = task_from(task, chosen)
    settings = FinetuneSettings(**{name: value for name, value in options.items() if name in NAMES})
    return made, settings, {name: value for name, value in options.items() if name in READING}
