"""What a pre-training run is told, and the published recipes by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bert_fast.training.options import check_at_least, check_types

# Google's sizes (Turc et al., 2019, and Devlin et al., 2019): layers and hidden size; heads of 64, feed-forward of 4.
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}

# Devlin et al. (2019), A.2, and google-research/bert's optimization.py and create_pretraining_data.py.
_GOOGLE: dict[str, Any] = {
    "nsp": True,
    "max_length": [128, 512],
    "steps": [900_000, 100_000],
    "batch_size": [256],
    "optimizer": "adamw",
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "betas": [0.9, 0.999],
    "eps": 1e-6,
    "bias_correction": False,
    "warmup": 10_000,
    "decay_from_start": True,
    "decay_power": 1.0,
    "max_grad_norm": 1.0,
    "mask_probability": 0.15,
    "max_predictions": [20, 77],
    "whole_words": False,
    "short_probability": 0.1,
}
RECIPES = {"google": _GOOGLE, "google-whole-word": {**_GOOGLE, "whole_words": True}}


@dataclass(frozen=True)
class PretrainSettings:
    """Everything that decides a pre-training run. Lists have an entry for each phase, or one for all.

    Args:
        documents: files of text (a sentence a line, a blank line between documents) or of rows with ``text_field``.
        tokenizer: its folder.
        output: the run's folder; ``output/model`` is the result.
        model: one of SIZES, or the path of a ``config.json`` (or of a folder with one): weights are drawn anew, and
            the vocabulary is the tokenizer's.
        checkpoint: a model's folder to start from, in place of ``model``.
        nsp: sentence pairs and BertForPreTraining; else masked tokens alone, and BertForMaskedLM.
        max_length: tokens of a sequence, or of a window.
        steps: of the optimizer.
        batch_size: sequences (or windows) of a step, of all processes and accumulated batches together.
        gradient_accumulation: in how many batches a step is computed.
        packed_windows: whether sequences share windows of ``max_length`` tokens, each seeing itself alone.
        optimizer: "lamb" or "adamw".
        learning_rate, weight_decay, betas, eps, bias_correction: of the optimizer; eps None is its own default.
        warmup: steps in which the rate rises; below 1, their share of all steps.
        decay_power, decay_from_start: of :func:`bert_fast.training.polynomial_schedule`, over all phases.
        max_grad_norm: None does not clip.
        mask_probability, max_predictions, whole_words: of :class:`bert_fast.training.TokenMasking`.
        short_probability: of :class:`bert_fast.training.SentencePairing`.
        dropout: of hidden states and attention; None for what the config says.
        text_field: see ``documents``.
        cache: where tokenized documents are kept; None for ``output/corpus``.
        eval_documents: files of held-out text: their loss and accuracy are measured.
        evaluate_every: steps between these.
        save_every, keep, log_every, mixed_precision, shard, gradient_checkpointing, seed: as of
            :func:`bert_fast.training.fit`; the seed also draws weights, masks, pairs and order.
        num_workers: processes that make batches; 0: the one that trains.

    Raises:
        ValueError: a value out of its range, or lists of different lengths.
    """

    documents: list[str]
    tokenizer: str
    output: str
    model: str = "base"
    checkpoint: str | None = None
    nsp: bool = True
    max_length: list[int] | int = 128
    steps: list[int] | int = 100_000
    batch_size: list[int] | int = 256
    gradient_accumulation: int = 1
    packed_windows: bool = False
    optimizer: str = "lamb"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    bias_correction: bool = True
    warmup: float = 0.1
    decay_power: float = 1.0
    decay_from_start: bool = False
    max_grad_norm: float | None = 1.0
    mask_probability: float = 0.15
    max_predictions: list[int] | int | None = None
    whole_words: bool = False
    short_probability: float = 0.1
    dropout: float | None = None
    text_field: str = "text"
    cache: str | None = None
    eval_documents: list[str] | None = None
    evaluate_every: int = 1000
    save_every: int = 1000
    keep: int = 2
    log_every: int = 10
    mixed_precision: str | None = None
    shard: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name in ("documents", "eval_documents"):
            value = getattr(self, name)
            files = [value] if isinstance(value, (str, Path)) else value
            if isinstance(files, (list, tuple)):
                object.__setattr__(self, name, [str(file) if isinstance(file, Path) else file for file in files])
        for name in ("tokenizer", "output", "model", "checkpoint", "cache"):
            if isinstance(getattr(self, name), Path):
                object.__setattr__(self, name, str(getattr(self, name)))
        check_types(type(self), vars(self))
        counts = ("gradient_accumulation", "evaluate_every", "save_every", "keep", "log_every")
        check_at_least(1, {name: getattr(self, name) for name in counts})
        check_at_least(0, {"num_workers": self.num_workers, "seed": self.seed})
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, not {self.seed}")
        if self.mixed_precision not in (None, "no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision must be 'no', 'bf16' or 'fp16', not {self.mixed_precision!r}")
        if not self.documents:
            raise ValueError("documents must name a file, or more")
        if self.optimizer not in ("lamb", "adamw"):
            raise ValueError(f"optimizer must be 'lamb' or 'adamw', not {self.optimizer!r}")
        if not self.warmup >= 0 or (self.warmup >= 1 and self.warmup != int(self.warmup)):
            raise ValueError(f"warmup must be a number of steps, or a share below 1, not {self.warmup}")
        for phase in self.phases():
            check_at_least(1, {name: getattr(phase, name) for name in ("max_length", "steps", "batch_size")})
            if phase.batch_size % self.gradient_accumulation:
                raise ValueError(
                    f"gradient_accumulation must divide batch_size, but {self.gradient_accumulation} does not divide "
                    f"{phase.batch_size}"
                )

    def phases(self) -> list[Phase]:
        """What changes in the course of the run, in order."""
        columns = {f.name: getattr(self, f.name) for f in fields(Phase)}
        lists = {k: list(v) if isinstance(v, (list, tuple)) else [v] for k, v in columns.items()}
        count = max(map(len, lists.values()))
        wrong = [name for name, values in lists.items() if len(values) not in (1, count)]
        if wrong:
            given = len(lists[wrong[0]])
            raise ValueError(f"{wrong[0]} has {given} entries for {count} phases: give one for each, or one for all")
        rows = zip(*(values * (count // len(values)) for values in lists.values()), strict=True)
        return [Phase(**dict(zip(lists, row, strict=True))) for row in rows]

    @property
    def total_steps(self) -> int:
        """Of all phases."""
        return sum(phase.steps for phase in self.phases())

    @property
    def warmup_steps(self) -> int:
        """Steps in which the rate rises."""
        return int(self.warmup if self.warmup >= 1 else self.warmup * self.total_steps)


@dataclass(frozen=True)
class Phase:
    """A part of a run with sequences of one length."""

    max_length: int
    steps: int
    batch_size: int
    max_predictions: int | None


def settings_from(values: Mapping[str, Any], recipe: str | None = None) -> PretrainSettings:
    """Settings from names and values, over those of a recipe.

    Raises:
        ValueError: a name that is none of them, a recipe that is none, or a value missing.
    """
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, not {recipe!r}")
    known = [field.name for field in fields(PretrainSettings)]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"there is no setting {name!r}" + (f": did you mean {close[0]!r}?" if close else ""))
    missing = [name for name in ("documents", "tokenizer", "output") if name not in values]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given")
    return PretrainSettings(**{**(RECIPES[recipe] if recipe else {}), **values})
