"""Multiple choice: which of several continuations, as in SWAG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bert_fast.tokenizer import Tokenizer
from bert_fast.training.data import Example
from bert_fast.training.metrics import Accuracy
from bert_fast.training.tasks.base import (
    Encoded,
    Prediction,
    Record,
    Row,
    Task,
    rounded,
    softmax,
    text_of,
    value_of,
    wrong,
)


@dataclass(frozen=True)
class MultipleChoice(Task):
    """The best of several choices, each read as a pair: the text, and the choice.

    Args:
        text: the column of the text.
        beginning: the column of what every choice begins with (SWAG's ``sent2``); None: there is none.
        choices: the columns of the choices, one each; or a single column that holds a list of them.
        label: the column of the right one's number, from 0.
        count: how many choices a row has; None: as many as the first training row.
    """

    text: str = "text"
    beginning: str | None = None
    choices: tuple[str, ...] = ("choices",)
    label: str = "label"
    count: int | None = None

    name = "choice"
    model_class = "BertForMultipleChoice"
    label_kind = "choice"
    metric = "accuracy"

    def __post_init__(self) -> None:
        choices = (self.choices,) if isinstance(self.choices, str) else tuple(self.choices)
        if not choices:
            raise ValueError("choices must name at least one column")
        object.__setattr__(self, "choices", choices)
        if len(choices) > 1 and self.count is None:
            object.__setattr__(self, "count", len(choices))

    def record(self, row: Row, labelled: bool = True) -> Record:
        """The text and the choices, and the right one's number."""
        text, choices = text_of(row, self.text), self._choices(row)
        if self.count not in (None, len(choices)):
            raise ValueError(f"column {self.choices[0]!r} holds {len(choices)} choices, but must hold {self.count}")
        if self.beginning is not None:
            beginning = text_of(row, self.beginning)
            choices = [f"{beginning} {choice}" for choice in choices]
        return Record((text, choices), self._number(row, len(choices)) if labelled else None)

    def _choices(self, row: Row) -> list[str]:
        if len(self.choices) > 1:
            return [text_of(row, column) for column in self.choices]
        value = value_of(row, self.choices[0])
        good = isinstance(value, (list, tuple, np.ndarray)) and len(value) > 1
        if not good or not all(isinstance(choice, str) for choice in value):
            raise wrong(self.choices[0], value, "a list of two strings or more")
        return list(value)

    def _number(self, row: Row, count: int) -> int:
        value = value_of(row, self.label)
        digits = value.strip() if isinstance(value, str) else ""
        number = int(digits) if digits.isdecimal() else value
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise wrong(self.label, value, f"the right choice's number, 0 to {count - 1}")
        return number

    def learned(self, records: Any) -> MultipleChoice:
        """With the number of choices of the first record, which all must have."""
        if self.count is not None:
            return self
        first = next(iter(records), None)
        if first is None:
            raise ValueError("there are no rows to train on")
        return replace(self, count=len(first.inputs[1]))

    def encoded(self, records: Sequence[Record], tokenizer: Tokenizer, max_length: int, whole: bool = False) -> Encoded:
        """One example of several sequences for each record; the longer one of a pair is cut first."""
        firsts = [text for record in records for text in [record.inputs[0]] * len(record.inputs[1])]
        seconds = [choice for record in records for choice in record.inputs[1]]
        ids, types, cut = tokenizer.encode_batch(firsts, seconds, max_length)
        assert types is not None
        examples, start, records_cut = [], 0, 0
        for record in records:
            here = slice(start, start + len(record.inputs[1]))
            examples.append([Example.of_sequences(ids[here], types[here], record.target)])
            cut_here = cut and tokenizer.encode_batch(firsts[here], seconds[here], max_length).cut
            start, records_cut = here.stop, records_cut + bool(cut_here)
        return Encoded(examples, records_cut)

    def config(self) -> dict[str, Any]:
        """Nothing: the model gives one number for each choice, however many there are."""
        return {}

    def prediction(self, record: Record, examples: Sequence[Example], logits: Sequence[np.ndarray]) -> Prediction:
        """``choice`` (a number), its ``score`` and all ``scores``: probabilities."""
        scores = softmax(logits[0])
        best = int(scores.argmax())
        return {"choice": best, "score": rounded(scores[best]), "scores": [rounded(score) for score in scores]}

    def scores(self) -> Accuracy:
        """Accuracy."""
        return Accuracy()

    def score(self, scores: Accuracy, record: Record, prediction: Prediction) -> None:
        """Count a record."""
        scores.add(prediction["choice"], record.target)
