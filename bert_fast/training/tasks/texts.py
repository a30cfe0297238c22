"""One text or a pair of them, as an example: what several tasks read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_fast.tokenizer import Tokenizer
from bert_fast.training.data import Example
from bert_fast.training.tasks.base import Encoded, Record, Row, Task, text_of


@dataclass(frozen=True)
class TextTask(Task):
    """A task over a text, or a pair of texts of which the longer one is cut first.

    Args:
        text: the column of the text.
        pair: the column of the second text; None: there is none.
        label: the column of what is to be predicted.
    """

    text: str = "text"
    pair: str | None = None
    label: str = "label"

    model_class = "BertForSequenceClassification"

    def texts(self, row: Row) -> tuple[str, ...]:
        """The row's text, or both."""
        return tuple(text_of(row, column) for column in (self.text, self.pair) if column is not None)

    @abstractmethod
    def label_of(self, target: Any) -> Any:
        """A record's target as the model learns it."""

    def encoded(self, records: Sequence[Record], tokenizer: Tokenizer, max_length: int, whole: bool = False) -> Encoded:
        """One example for each record."""
        firsts = [record.inputs[0] for record in records]
        pairs = None if self.pair is None else [record.inputs[1] for record in records]
        ids, types, cut = tokenizer.encode_batch(firsts, pairs, max_length)
        examples = []
        for number, record in enumerate(records):
            label = None if record.target is None else self.label_of(record.target)
            kinds = None if types is None else np.asarray(types[number])
            examples.append([Example(np.asarray(ids[number]), kinds, label)])
        return Encoded(examples, cut)
