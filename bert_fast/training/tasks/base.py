"""What every task is: rows to examples, a model's outputs to predictions, predictions to scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from bert_fast.tokenizer import Tokenizer
from bert_fast.training.data import Example
from bert_fast.training.data.collate import LabelKind

Row = Mapping[str, Any]
Prediction = dict[str, Any]


class Record(NamedTuple):
    """What a task needs of a row, checked.

    Attributes:
        inputs: texts or words, as the task has them.
        target: what is to be predicted; None where the row does not say or nobody asked.
    """

    inputs: Any
    target: Any = None


class Encoded(NamedTuple):
    """Records as examples.

    Attributes:
        examples: of each record one or more; several where a text was cut into windows.
        cut: how many records lost tokens to ``max_length``.
    """

    examples: list[list[Example]]
    cut: int


class Scores(Protocol):
    """Counts rows and computes scores; ``add`` has the arguments that the task's ``score`` gives it."""

    def compute(self) -> dict[str, float]:
        """Name -> score."""


@dataclass(frozen=True)
class Task(ABC):
    """A task: which columns of a row it reads, what its labels are, and how a model learns and does it.

    A task is a value: its fields are written beside the model, and :func:`bert_fast.training.tasks.task_from` makes it
    again. What it lacks at first, such as label names, :meth:`learned` finds in the training rows.
    """

    name: ClassVar[str]
    model_class: ClassVar[str]
    label_kind: ClassVar[LabelKind]
    default_length: ClassVar[int | None] = None
    """``max_length`` where the user gives none; None: the tokenizer's."""

    # ---------------------------------------------------------------- rows

    @abstractmethod
    def record(self, row: Row, labelled: bool = True) -> Record:
        """What the task needs of a row; with ``labelled`` its target, too.

        Raises:
            ValueError: a column is missing or holds what it may not; the message says which, what, and what it may.
        """

    def learned(self, records: Iterable[Record]) -> Task:
        """The task with what only the training records say. Consumes them, in constant memory."""
        return self

    @abstractmethod
    def encoded(self, records: Sequence[Record], tokenizer: Tokenizer, max_length: int, whole: bool = False) -> Encoded:
        """Records as examples, labelled where they have a target.

        Args:
            max_length: the most tokens of a sequence, special tokens included.
            whole: to predict rather than to train: nothing that is to be predicted may be cut off, where windows allow.

        Raises:
            ValueError: a target that the task does not know, or a text that cannot be cut to ``max_length``.
        """

    # ---------------------------------------------------------------- model

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What the model's config must say: ``num_labels`` or ``id2label``, and ``problem_type`` where there is one."""

    @property
    def per_token(self) -> bool:
        """Whether the model's outputs have a row for each token, rather than for each example."""
        return self.label_kind in ("token", "span")

    # ---------------------------------------------------------------- predictions

    @abstractmethod
    def prediction(self, record: Record, examples: Sequence[Example], logits: Sequence[np.ndarray]) -> Prediction:
        """What the model says about a record, as JSON holds it.

        Args:
            examples: the record's.
            logits: float32, for each example: ``[labels]``, or with :attr:`per_token` ``[tokens, labels]``.
        """

    @property
    @abstractmethod
    def metric(self) -> str:
        """The score by which models of this task are compared; the higher, the better."""

    @abstractmethod
    def scores(self) -> Any:
        """A fresh :class:`Scores`."""

    @abstractmethod
    def score(self, scores: Any, record: Record, prediction: Prediction) -> None:
        """Count one record, which has a target, and its prediction."""

    # ---------------------------------------------------------------- as a value

    def to_dict(self) -> dict[str, Any]:
        """Name and fields, as JSON holds them."""
        return {"task": self.name, **asdict(self)}

    @classmethod
    def options(cls) -> list[str]:
        """The names of the fields."""
        return [field.name for field in fields(cls)]


def value_of(row: Row, column: str) -> Any:
    """The row's value in a column. Raises ValueError, with the columns there are, if it has no such column."""
    try:
        return row[column]
    except KeyError:
        raise ValueError(f"no column {column!r}; there are {', '.join(map(repr, row)) or 'none'}") from None


def text_of(row: Row, column: str) -> str:
    """The string in a column. Raises ValueError for anything else."""
    value = value_of(row, column)
    if not isinstance(value, str):
        raise wrong(column, value, "a string")
    return value


def wrong(column: str, found: Any, allowed: str) -> ValueError:
    """The error that a column does not hold what it must."""
    return ValueError(f"column {column!r} holds {_short(found)}, but must hold {allowed}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def rounded(number: float) -> float:
    """A probability or score as it is written: six digits after the point."""
    return round(float(number), 6)
