"""A model's predictions for rows: packed, without gradients, in the rows' order, in constant memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from bert_fast.tokenizer import Tokenizer
from bert_fast.training.data import Batch, BatchPlan, Example, PackedCollator
from bert_fast.training.finetuning.ranks import Ranks, dealt
from bert_fast.training.tasks import Record, Task
from bert_fast.training.tasks.base import Prediction

_WINDOW = 512  # records of a process in memory at a time: enough that batches of like lengths come out


class Predictor:
    """Runs a model over records.

    Where several ``ranks`` share the work, all of them call the same methods with the same records. Each reads all and
    computes its share of every window, all learn every prediction, and scores are taken of all rows in their order: as
    in one process, of each row once. All run the model equally often, as one that is cut up among them (FSDP2) needs.

    Args:
        model: of ``task.model_class``, in evaluation mode.
        max_length: the most tokens of a sequence.
        max_tokens: of a batch; None: 4,096, and 65,536 on a GPU.
        ranks: who shares the records.

    Attributes:
        cut: how many records lost tokens to ``max_length``.
        loss: the mean loss over all labels so far (what stands in two windows counts twice), without class weights;
            None where there was no label.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        tokenizer: Tokenizer,
        max_length: int,
        max_tokens: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.task, self.tokenizer, self.max_length = model, task, tokenizer, max_length
        self.device = next(model.parameters()).device
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
        self.max_tokens = max_tokens or (4096 if self.device.type == "cpu" else 65536)
        self.ranks = ranks or Ranks()
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
        while window := list(islice(iterator, _WINDOW * self.ranks.count)):
            count += len(window)
            shares = self.ranks.gathered(self._share(window))
            self.cut += sum(share.cut for share in shares)
            self._loss += sum(share.loss for share in shares)
            self._labels += sum(share.labels for share in shares)
            yield from zip(window, dealt([share.predictions for share in shares]), strict=True)
        if self.cut and self.ranks.first:
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

    def _share(self, window: list[Record]) -> _Share:
        """This rank's share of a window. One without any runs the model over the first record, and forgets it."""
        mine = self.ranks.share(window)
        encoded = self.task.encoded(mine or window[:1], self.tokenizer, self.max_length, whole=True)
        examples = [example for own in encoded.examples for example in own]
        share, outputs = self._run(examples, labelled=window[0].target is not None)
        if not mine:
            return _Share()
        share.cut, first = encoded.cut, 0
        for record, own in zip(mine, encoded.examples, strict=True):
            share.predictions.append(self.task.prediction(record, own, outputs[first : first + len(own)]))
            first += len(own)
        return share

    def _run(self, examples: list[Example], labelled: bool) -> tuple[_Share, list[np.ndarray]]:
        """The loss over examples, and logits of each, float32."""
        share, outputs = _Share(), [np.empty(0)] * len(examples)
        lengths = np.array([len(example) for example in examples])
        batches = BatchPlan(lengths, max_tokens=self.max_tokens, group_by_length=True).batches()
        collate = PackedCollator(self.task.label_kind if labelled else None)
        for indices in batches:
            batch = collate([examples[index] for index in indices])
            output = self._forward(batch, len(indices))
            labels = batch.label_counts.get("labels", 0)
            if labels:
                share.loss, share.labels = share.loss + float(output["loss"]) * labels, share.labels + labels
            for index, logits in zip(indices.tolist(), self._logits(batch, output), strict=True):
                outputs[index] = logits
        for _ in range(max(self.ranks.gathered(len(batches))) - len(batches)):
            self._forward(collate([examples[lengths.argmin()]]), 1)
        return share, outputs

    @torch.no_grad()
    def _forward(self, batch: Batch, count: int) -> Any:
        if self.task.label_kind == "choice":
            batch["num_choices"] = len(batch["input_ids"].cu_seqlens.diff()) // count
        return self.model(**batch.to(self.device))

    def _logits(self, batch: Batch, output: Any) -> list[np.ndarray]:
        """Of each example of the batch."""
        if self.task.label_kind == "span":
            logits = torch.stack((output["start_logits"], output["end_logits"]), -1)
        else:
            logits = output["logits"]
        parts = logits.float().cpu()
        lengths = batch["input_ids"].cu_seqlens.diff().tolist()
        return [part.numpy() for part in (parts.split(lengths) if self.task.per_token else parts)]


@dataclass
class _Share:
    """What a process found about its share of a window; ``loss`` is a sum over ``labels``."""

    predictions: list[Prediction] = field(default_factory=list)
    cut: int = 0
    loss: float = 0.0
    labels: int = 0
