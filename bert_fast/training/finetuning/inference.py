"""A model's predictions for rows: packed, without gradients, in the rows' order, in constant memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from bert_fast.tokenizer import Tokenizer
from bert_fast.training.data import Batch, BatchPlan, Example, PackedCollator
from bert_fast.training.tasks import Record, Task
from bert_fast.training.tasks.base import Prediction

_WINDOW = 512  # records in memory at a time: enough that batches of like lengths come out


class Predictor:
    """Runs a model over records.

    Args:
        model: of ``task.model_class``, in evaluation mode.
        max_length: the most tokens of a sequence.
        max_tokens: of a batch; None: 4,096, and 65,536 on a GPU.

    Attributes:
        cut: how many records lost tokens to ``max_length``.
        loss: the mean loss over all labels so far (what stands in two windows counts twice), without class weights;
            None where there was no label.
    """

    def __init__(
        self, model: nn.Module, task: Task, tokenizer: Tokenizer, max_length: int, max_tokens: int | None = None
    ) -> None:
        self.model, self.task, self.tokenizer, self.max_length = model, task, tokenizer, max_length
        self.device = next(model.parameters()).device
        self.max_tokens = max_tokens or (4096 if self.device.type == "cpu" else 65536)
        self.cut = 0
        self._loss, self._labels = 0.0, 0

    @property
    def loss(self) -> float | None:
        """See the class."""
        return self._loss / self._labels if self._labels else None

    def __call__(self, records: Iterable[Record]) -> Iterator[tuple[Record, Prediction]]:
        """Each record and what the model says about it. All have a target, or none has.

        Warns at the end, with their number, if records were cut.
        """
        iterator, count = iter(records), 0
        while window := list(islice(iterator, _WINDOW)):
            encoded = self.task.encoded(window, self.tokenizer, self.max_length, whole=True)
            self.cut += encoded.cut
            labelled = window[0].target is not None
            outputs = self._run([example for own in encoded.examples for example in own], labelled)
            first, count = 0, count + len(window)
            for record, own in zip(window, encoded.examples, strict=True):
                yield record, self.task.prediction(record, own, outputs[first : first + len(own)])
                first += len(own)
        if self.cut:
            warnings.warn(
                f"{self.cut:,} of {count:,} rows were longer than {self.max_length} tokens and were cut", stacklevel=2
            )

    def evaluated(self, records: Iterable[Record]) -> dict[str, float]:
        """The task's scores over records with targets, their number ``rows`` and, where there is one, ``eval_loss``."""
        scores, rows = self.task.scores(), 0
        for record, prediction in self(records):
            self.task.score(scores, record, prediction)
            rows += 1
        if not rows:
            raise ValueError("there are no rows to evaluate")
        loss = {} if self.loss is None else {"eval_loss": self.loss}
        return {**scores.compute(), **loss, "rows": rows}

    def _run(self, examples: list[Example], labelled: bool) -> list[np.ndarray]:
        """Logits of each example, float32."""
        outputs: list[Any] = [None] * len(examples)
        plan = BatchPlan(
            np.array([len(example) for example in examples]), max_tokens=self.max_tokens, group_by_length=True
        )
        collate = PackedCollator(self.task.label_kind if labelled else None)
        for indices in plan.batches():
            batch = collate([examples[index] for index in indices])
            for index, logits in zip(indices.tolist(), self._forward(batch, len(indices)), strict=True):
                outputs[index] = logits
        return outputs

    @torch.no_grad()
    def _forward(self, batch: Batch, count: int) -> list[np.ndarray]:
        lengths = batch["input_ids"].cu_seqlens.diff().tolist()
        if self.task.label_kind == "choice":
            batch["num_choices"] = len(lengths) // count
        output = self.model(**batch.to(self.device))
        labels = batch.label_counts.get("labels", 0)
        if labels:
            self._loss += float(output["loss"]) * labels
            self._labels += labels
        if self.task.label_kind == "span":
            logits = torch.stack((output["start_logits"], output["end_logits"]), -1)
        else:
            logits = output["logits"]
        parts = logits.float().cpu()
        return [part.numpy() for part in (parts.split(lengths) if self.task.per_token else parts)]
