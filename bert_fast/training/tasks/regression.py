"""Regression: a number for each text or pair of texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_fast.training.data import Example
from bert_fast.training.metrics import NumberScores
from bert_fast.training.tasks.base import Prediction, Record, Row, rounded, value_of, wrong
from bert_fast.training.tasks.texts import TextTask


@dataclass(frozen=True)
class Regression(TextTask):
    """A number for each text or pair, learned by its squared error."""

    name = "regression"
    label_kind = "value"
    metric = "pearson"

    def record(self, row: Row, labelled: bool = True) -> Record:
        """Texts, and a number."""
        return Record(self.texts(row), self._number(row) if labelled else None)

    def _number(self, row: Row) -> float:
        value = value_of(row, self.label)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise wrong(self.label, value, "a finite number")
        return number

    def label_of(self, target: float) -> float:
        """The number itself."""
        return target

    def config(self) -> dict[str, Any]:
        """One output, and ``problem_type``."""
        return {"num_labels": 1, "problem_type": "regression"}

    def prediction(self, record: Record, examples: Sequence[Example], logits: Sequence[np.ndarray]) -> Prediction:
        """``score``: the number."""
        return {"score": rounded(logits[0][0])}

    def scores(self) -> NumberScores:
        """Pearson, Spearman, errors."""
        return NumberScores()

    def score(self, scores: NumberScores, record: Record, prediction: Prediction) -> None:
        """Count a record."""
        scores.add(prediction["score"], record.target)
