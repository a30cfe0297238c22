"""Losses in which some labels count more than others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_fast.training.data.collate import IGNORED


class WeightedLoss:
    """Cross-entropy with a weight for each label, for classes and for tokens; for ``fit(loss=...)``.

    Its mean is over the sum of the weights of the labels there are, as ``torch.nn.CrossEntropyLoss`` has it.

    Args:
        weights: one for each label, above 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = torch.tensor(weights, dtype=torch.float32)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float | Tensor]:
        """The sum of weights; 0 for a batch that only keeps this rank in step."""
        if getattr(batch, "filler", False):
            return {"labels": 0.0}
        labels = batch["labels"].flatten()
        return {"labels": self.weights.to(labels.device)[labels[labels != IGNORED]].sum()}

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weighted mean."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits, labels = model(**inputs)["logits"], batch["labels"].flatten()
        rows = logits.reshape(-1, logits.shape[-1]).float()
        weights = self.weights.to(rows.device)
        total = F.cross_entropy(rows, labels, weights, ignore_index=IGNORED, reduction="sum")
        kept = weights[labels.clamp(min=0)].masked_fill(labels == IGNORED, 0)
        return {"labels": total / kept.sum().clamp(min=torch.finfo(torch.float32).tiny)}


def weights_of(
    wanted: str | Mapping[str, float] | Sequence[float], names: Sequence[str], labels: Iterable[Any]
) -> list[float]:
    """A weight for each label.

    Args:
        wanted: "balanced": in inverse proportion to how often a label occurs, 1 on average over what occurs (as
            scikit-learn has it); a weight by label's name (1 for those not named); or one for each.
        names: of the labels.
        labels: integers or arrays of them, -100 not counted: what ``"balanced"`` counts.

    Raises:
        ValueError: another word, an unknown name, a wrong number of weights, one that is not above 0, or a label that
            never occurs and so has no balanced weight.
    """
    if isinstance(wanted, str):
        if wanted != "balanced":
            raise ValueError(f"class_weights must be 'balanced', a mapping or a list, not {wanted!r}")
        found = torch.zeros(len(names), dtype=torch.int64)
        for own in labels:
            numbers = torch.as_tensor(own).flatten().long()
            found += torch.bincount(numbers[numbers != IGNORED], minlength=len(names))
        missing = [name for name, count in zip(names, found.tolist(), strict=True) if not count]
        if missing:
            raise ValueError(f"class_weights 'balanced': no row is labelled {', '.join(map(repr, missing))}")
        return (found.sum() / (len(names) * found)).tolist()
    if isinstance(wanted, Mapping):
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise ValueError(f"class_weights names {unknown[0]!r}, which is none of {', '.join(map(repr, names))}")
        weights = [wanted.get(name, 1.0) for name in names]
    else:
        weights = list(wanted)
    if len(weights) != len(names) or not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"class_weights must be {len(names)} numbers above 0, one for each label, not {wanted!r}")
    return weights
