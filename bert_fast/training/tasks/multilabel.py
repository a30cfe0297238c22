"""Multi-label classification: any number of labels for each text or pair of texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bert_fast.training.data import Example
from bert_fast.training.metrics import MultiLabelScores
from bert_fast.training.tasks.base import Prediction, Record, Row, rounded, value_of, wrong
from bert_fast.training.tasks.labels import checked_names, collected, id2label, name_of
from bert_fast.training.tasks.texts import TextTask

_YES_OR_NO = {0: False, 1: True, "0": False, "1": True, "": False}


@dataclass(frozen=True)
class MultiLabel(TextTask):
    """Any number of labels for each text or pair.

    Args:
        label: the column that lists a row's labels: a list of names, or a string of names with ``separator`` between.
        label_columns: in its place, one column for each label, which holds 0 or 1.
        labels: names, by number; empty: those that the training rows hold, or ``label_columns``.
        separator: between names in a string.
        threshold: the least probability of a label that is predicted.
    """

    label: str = "labels"
    label_columns: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    separator: str = ","
    threshold: float = 0.5

    name = "multilabel"
    label_kind = "multi"
    metric = "f1_micro"

    def __post_init__(self) -> None:
        object.__setattr__(self, "label_columns", checked_names(self.label_columns))
        object.__setattr__(self, "labels", checked_names(self.labels or self.label_columns))
        if self.label_columns and self.labels != self.label_columns:
            raise ValueError(f"labels are label_columns where these are given: {self.label_columns}, not {self.labels}")
        if not self.separator:
            raise ValueError("separator must not be empty")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, not {self.threshold}")

    def record(self, row: Row, labelled: bool = True) -> Record:
        """Texts, and the names of labels."""
        return Record(self.texts(row), self._names(row) if labelled else None)

    def _names(self, row: Row) -> tuple[str, ...]:
        if self.label_columns:
            return tuple(column for column in self.label_columns if _holds(row, column))
        value = value_of(row, self.label)
        if isinstance(value, str):
            value = [part.strip() for part in value.split(self.separator) if part.strip()]
        if not isinstance(value, (list, tuple, np.ndarray)):
            raise wrong(self.label, value, f"a list of labels, or a string of them with {self.separator!r} between")
        return tuple(name_of(part, self.label, self.labels) for part in value)

    def learned(self, records: Iterable[Record]) -> MultiLabel:
        """With the label names of the records, unless they were given."""
        names = (name for record in records for name in record.target)
        return self if self.labels else replace(self, labels=collected(names, self.label))

    def label_of(self, target: Sequence[str]) -> list[int]:
        """For each label 1 or 0."""
        return [int(name in target) for name in self.labels]

    def config(self) -> dict[str, Any]:
        """``id2label`` and ``problem_type``."""
        return {**id2label(self.labels), "problem_type": "multi_label_classification"}

    def prediction(self, record: Record, examples: Sequence[Example], logits: Sequence[np.ndarray]) -> Prediction:
        """``labels`` (the likeliest first) and all ``scores``: probabilities."""
        scores = 1 / (1 + np.exp(-logits[0].astype(np.float64)))
        named = {name: rounded(score) for name, score in zip(self.labels, scores, strict=True)}
        chosen = [name for name, score in zip(self.labels, scores, strict=True) if score >= self.threshold]
        return {"labels": sorted(chosen, key=named.__getitem__, reverse=True), "scores": named}

    def scores(self) -> MultiLabelScores:
        """F1, and how often all labels are right."""
        return MultiLabelScores(self.labels)

    def score(self, scores: MultiLabelScores, record: Record, prediction: Prediction) -> None:
        """Count a record."""
        scores.add(self.label_of(prediction["labels"]), self.label_of(record.target))


def _holds(row: Row, column: str) -> bool:
    value = value_of(row, column)
    try:
        return _YES_OR_NO[value]
    except (KeyError, TypeError):
        raise wrong(column, value, "0 or 1") from None
