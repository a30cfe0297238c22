"""What a step minimises: a mean over all labels of a whole batch, in however many pieces the batch is computed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bert_fast import ops
from bert_fast.training.masking import IGNORED


class Loss(Protocol):
    """A loss in parts, each a mean over labels of its own, which :func:`bert_fast.training.fit` adds up."""

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float | Tensor]:
        """How many labels (or which sum of weights) each part is a mean over, asked before the batch is moved."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The same parts' means over this batch, with gradients."""


class ModelLoss:
    """The loss that a model computes of ``model(**batch)``, as every model of bert_fast and transformers does.

    Parts: "labels", and "next_sentence_label" for pretraining, whose two losses are means over different numbers of
    labels. The models here that can do without logits of the whole vocabulary are asked to.

    ``counts``: what the batch says in its ``label_counts``; of any other mapping: its labels that are not -100 (all,
    if they are floats); its spans that begin and end inside.
    """

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float | Tensor]:
        """See the class."""
        held = getattr(batch, "label_counts", None)
        if held:
            return dict(held)
        if "start_positions" in batch:
            return {"labels": _spans_inside(batch)}
        if "labels" not in batch:
            raise ValueError(f"a batch needs labels (or start_positions and end_positions), and has {sorted(batch)}")
        counts = {"labels": _labelled(batch["labels"])}
        if "next_sentence_label" in batch:
            counts["next_sentence_label"] = _labelled(batch["next_sentence_label"])
        return counts

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """See the class."""
        without_logits = {"return_logits": False} if _takes_return_logits(model) else {}
        output = model(**batch, **without_logits)
        loss = output["loss"]
        if "next_sentence_label" not in batch or "labels" not in batch:
            return {"labels": loss}
        labels = batch["next_sentence_label"].view(-1)
        next_sentence = ops.cross_entropy(output["seq_relationship_logits"].view(-1, 2), labels)
        return {"labels": loss - next_sentence, "next_sentence_label": next_sentence}


def _labelled(labels: Tensor) -> float | Tensor:
    return float(labels.numel()) if labels.is_floating_point() else (labels != IGNORED).sum()


def _spans_inside(batch: Mapping[str, Any]) -> Tensor:
    inputs = batch["input_ids"]
    lengths = inputs.cu_seqlens.diff() if hasattr(inputs, "cu_seqlens") else inputs.shape[1]
    inside = [(batch[name] >= 0) & (batch[name] < lengths) for name in ("start_positions", "end_positions")]
    return torch.logical_and(*inside).sum()


def _takes_return_logits(model: nn.Module) -> bool:
    inner = getattr(model, "module", model)
    return "return_logits" in inspect.signature(type(inner).forward).parameters
