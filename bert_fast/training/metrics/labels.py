"""Scores of labels and of numbers, by scikit-learn and SciPy; of each row only its labels are kept."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np


class _Pairs:
    """What was predicted and what was there, row by row."""

    def __init__(self, typecode: str) -> None:
        self._predicted, self._actual = array(typecode), array(typecode)

    def add(self, predicted: Any, actual: Any) -> None:
        """Count one row, by its numbers (of labels: their ids)."""
        self._predicted.append(predicted)
        self._actual.append(actual)


class LabelScores(_Pairs):
    """Accuracy, F1 and Matthews' correlation, where each row (or word) has one label.

    Args:
        names: of the labels, by id.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__("i")
        self._names = list(names)

    def compute(self) -> dict[str, float]:
        """``accuracy``, ``f1_macro`` (over the labels that occur), ``matthews_correlation`` and ``f1/LABEL``."""
        from sklearn import metrics

        if not self._actual:
            return {}
        predicted, actual = np.asarray(self._predicted), np.asarray(self._actual)
        present = np.union1d(predicted, actual)
        each = metrics.f1_score(actual, predicted, labels=present, average=None, zero_division=0)
        return {
            "accuracy": float((predicted == actual).mean()),
            "f1_macro": float(each.mean()),
            # of a single label there is none, for scikit-learn with a warning
            "matthews_correlation": float(metrics.matthews_corrcoef(actual, predicted)) if len(present) > 1 else 0.0,
            **{f"f1/{self._names[label]}": float(score) for label, score in zip(present, each, strict=True)},
        }


class Accuracy:
    """How often the right one was chosen."""

    def __init__(self) -> None:
        self._rows = self._right = 0

    def add(self, predicted: int, actual: int) -> None:
        """Count one row."""
        self._rows += 1
        self._right += predicted == actual

    def compute(self) -> dict[str, float]:
        """``accuracy``."""
        return {"accuracy": self._right / self._rows} if self._rows else {}


class MultiLabelScores:
    """F1 where each row has any number of labels.

    Args:
        names: of the labels, by id.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._predicted: list[np.ndarray] = []
        self._actual: list[np.ndarray] = []

    def add(self, predicted: Sequence[int], actual: Sequence[int]) -> None:
        """Count one row: for each label whether it holds, as 0 or 1."""
        self._predicted.append(np.asarray(predicted, dtype=np.int8))
        self._actual.append(np.asarray(actual, dtype=np.int8))

    def compute(self) -> dict[str, float]:
        """``f1_micro``, ``f1_macro``, ``accuracy`` (all labels of a row right) and ``f1/LABEL``; 0 of 0 is 0."""
        from sklearn import metrics

        if not self._actual:
            return {}
        predicted, actual = np.stack(self._predicted), np.stack(self._actual)
        # a column more keeps sklearn from reading one label as a yes-or-no question
        labels = range(actual.shape[1])
        padded = [np.pad(x, ((0, 0), (0, 1))) for x in (actual, predicted)]
        each = metrics.f1_score(*padded, labels=labels, average=None, zero_division=0)
        return {
            "f1_micro": float(metrics.f1_score(*padded, labels=labels, average="micro", zero_division=0)),
            "f1_macro": float(each.mean()),
            "accuracy": float((predicted == actual).all(axis=1).mean()),
            **{f"f1/{name}": float(score) for name, score in zip(self._names, each, strict=True)},
        }


class NumberScores(_Pairs):
    """Pearson's and Spearman's correlation and the errors of predicted numbers."""

    def __init__(self) -> None:
        super().__init__("d")

    def compute(self) -> dict[str, float]:
        """``pearson``, ``spearman`` (0 where one side does not vary), ``mse`` and ``mae``."""
        from scipy import stats

        if not self._actual:
            return {}
        predicted, actual = np.asarray(self._predicted), np.asarray(self._actual)
        constant = predicted.min() == predicted.max() or actual.min() == actual.max()
        pearson = 0.0 if constant else float(stats.pearsonr(predicted, actual).statistic)
        spearman = 0.0 if constant else float(stats.spearmanr(predicted, actual).statistic)
        error = predicted - actual
        return {
            "pearson": pearson,
            "spearman": spearman,
            "mse": float(np.square(error).mean()),
            "mae": float(np.abs(error).mean()),
        }
