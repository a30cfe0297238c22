"""Classification of a text or a pair of texts: one label each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bert_fast.training.data import Example
from bert_fast.training.metrics import LabelScores
from bert_fast.training.tasks.base import Prediction, Record, Row, rounded, softmax, value_of
from bert_fast.training.tasks.labels import checked_names, collected, id2label, name_of
from bert_fast.training.tasks.texts import TextTask


@dataclass(frozen=True)
class Classification(TextTask):
    """One label for each text or pair.

    Rows hold a label's name, or an integer: a name too, unless ``labels`` is given and has no such name; then it is the
    label's number.

    Args:
        labels: names, by number; empty: those that the training rows hold.
    """

    labels: tuple[str, ...] = ()

    name = "classification"
    label_kind = "class"
    metric = "accuracy"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", checked_names(self.labels))

    def record(self, row: Row, labelled: bool = True) -> Record:
        """Texts, and the label's name."""
        target = name_of(value_of(row, self.label), self.label, self.labels) if labelled else None
        return Record(self.texts(row), target)

    def learned(self, records: Iterable[Record]) -> Classification:
        """With the label names of the records, unless they were given."""
        return self if self.labels else replace(self, labels=collected((r.target for r in records), self.label))

    def label_of(self, target: str) -> int:
        """The label's number."""
        return self.labels.index(target)

    def config(self) -> dict[str, Any]:
        """``id2label`` and ``problem_type``."""
        return {**id2label(self.labels), "problem_type": "single_label_classification"}

    def prediction(self, record: Record, examples: Sequence[Example], logits: Sequence[np.ndarray]) -> Prediction:
        """``label``, its ``score`` and all ``scores``: probabilities."""
        scores = softmax(logits[0])
        best = int(scores.argmax())
        named = {name: rounded(score) for name, score in zip(self.labels, scores, strict=True)}
        return {"label": self.labels[best], "score": named[self.labels[best]], "scores": named}

    def scores(self) -> LabelScores:
        """Accuracy, F1, Matthews."""
        return LabelScores(self.labels)

    def score(self, scores: LabelScores, record: Record, prediction: Prediction) -> None:
        """Count a record."""
        scores.add(self.labels.index(prediction["label"]), self.labels.index(record.target))
