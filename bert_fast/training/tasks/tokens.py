"""Token classification: a label for each word of a sentence, such as its part of speech or the entity it is in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import tokenizers

from bert_fast.tokenizer import Tokenizer
from bert_fast.training.data import Example
from bert_fast.training.data.collate import IGNORED
from bert_fast.training.metrics import EntityScores, LabelScores, are_entity_tags, entities
from bert_fast.training.tasks.base import Encoded, Prediction, Record, Row, Task, rounded, softmax, value_of, wrong
from bert_fast.training.tasks.labels import checked_names, collected, id2label, name_of

UNSEEN = ""
"""The label of a word of which the tokenizer left nothing, where "O" is no label."""


@dataclass(frozen=True)
class TokenClassification(Task):
    """A label for each word.

    Where all labels are entity tags (``O``, ``B-PER``, ...), entities are what is scored, and predictions list them.

    Args:
        tokens: the column of the words: a list, or a string that is cut at white space.
        label: the column of their labels: a list (or such a string) of the same length.
        labels: names, by number; empty: those that the training rows hold.
        label_pieces: which pieces of a word are trained on: the "first", or "all" (of which the later ones continue an
            entity: ``I-PER`` after ``B-PER``). Predicted is by the first.
    """

    tokens: str = "tokens"
    label: str = "labels"
    labels: tuple[str, ...] = ()
    label_pieces: Literal["first", "all"] = "first"

    name = "tokens"
    model_class = "BertForTokenClassification"
    label_kind = "token"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", checked_names(self.labels))
        if self.label_pieces not in ("first", "all"):
            raise ValueError(f"label_pieces must be 'first' or 'all', not {self.label_pieces!r}")

    @property
    def metric(self) -> str:
        """Entities' F1, or accuracy."""
        return "f1" if are_entity_tags(self.labels) else "accuracy"

    def record(self, row: Row, labelled: bool = True) -> Record:
        """Words, and their labels' names."""
        words = _listed(row, self.tokens, "words")
        for word in words:
            if not isinstance(word, str):
                raise wrong(self.tokens, word, "words, each a string")
        if not labelled:
            return Record(words)
        names = [name_of(value, self.label, self.labels) for value in _listed(row, self.label, "labels")]
        if len(names) != len(words):
            raise ValueError(
                f"column {self.label!r} holds {len(names)} labels for the {len(words)} words of {self.tokens!r}"
            )
        return Record(words, names)

    def learned(self, records: Iterable[Record]) -> TokenClassification:
        """With the label names of the records, unless they were given."""
        names = (name for record in records for name in record.target)
        return self if self.labels else replace(self, labels=collected(names, self.label))

    def encoded(self, records: Sequence[Record], tokenizer: Tokenizer, max_length: int, whole: bool = False) -> Encoded:
        """An example for each record, cut to ``max_length``; ``whole``: windows over all of it, a quarter shared."""
        sentences = [record.inputs for record in records]
        found = tokenizer(
            sentences,
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            stride=max_length // 4 if whole else 0,
        )
        examples = []
        for record, encoding in zip(records, found.encodings, strict=True):
            windows = [encoding, *encoding.overflowing] if whole else [encoding]
            examples.append([self._example(window, record.target, number > 0) for number, window in enumerate(windows)])
        return Encoded(examples, 0 if whole else sum(bool(encoding.overflowing) for encoding in found.encodings))

    def _example(self, window: tokenizers.Encoding, names: Sequence[str] | None, later: bool) -> Example:
        words = np.array([-1 if word is None else word for word in window.word_ids], dtype=np.int32)
        first = (words >= 0) & (np.diff(words, prepend=-1) != 0)
        if later and first.any():
            # a later window may begin within a word, whose first piece is in the one before
            opening = int(first.argmax())
            first[opening] = window.offsets[opening][0] == 0
        labels = None
        if names is not None:
            numbers = {name: number for number, name in enumerate(self.labels)}
            starting = np.array([numbers[name] for name in names] or [IGNORED])
            labels = np.where(first, starting[words], IGNORED)
            if self.label_pieces == "all":
                going_on = np.array([numbers.get(_inside(name), numbers[name]) for name in names] or [IGNORED])
                labels = np.where((words >= 0) & ~first, going_on[words], labels)
        return Example(np.asarray(window.ids), None, labels, {"words": words, "first": first})

    def config(self) -> dict[str, Any]:
        """``id2label``."""
        return id2label(self.labels)

    def prediction(self, record: Record, examples: Sequence[Example], logits: Sequence[np.ndarray]) -> Prediction:
        """``tokens``, ``labels`` and ``scores`` word by word, and the ``entities`` where labels are entity tags.

        A word that stands in several windows is judged where it has most tokens on both sides.
        """
        words: Sequence[str] = record.inputs
        labels = ["O" if "O" in self.labels else UNSEEN] * len(words)
        scores, context = [0.0] * len(words), [-1] * len(words)
        for example, rows in zip(examples, logits, strict=True):
            places = np.flatnonzero(example.info["first"])
            probabilities = softmax(rows[places])
            best = probabilities.argmax(-1)
            for place, number, row in zip(places.tolist(), best.tolist(), probabilities, strict=True):
                word = int(example.info["words"][place])
                room = min(place, len(example) - 1 - place)
                if room > context[word]:
                    context[word], labels[word], scores[word] = room, self.labels[number], rounded(row[number])
        predicted = {"tokens": list(words), "labels": labels, "scores": scores}
        if are_entity_tags(self.labels):
            predicted["entities"] = [
                {"type": kind, "start": start, "end": end, "text": " ".join(words[start:end])}
                for kind, start, end in entities(labels)
            ]
        return predicted

    def scores(self) -> EntityScores | LabelScores:
        """Of entities, or of labels."""
        return EntityScores() if are_entity_tags(self.labels) else LabelScores([*self.labels, "(none)"])

    def score(self, scores: EntityScores | LabelScores, record: Record, prediction: Prediction) -> None:
        """Count a record's words."""
        predicted = prediction["labels"]
        if isinstance(scores, EntityScores):
            scores.add(predicted, record.target)
            return
        numbers = {name: number for number, name in enumerate((*self.labels, UNSEEN))}
        for ours, actual in zip(predicted, record.target, strict=True):
            scores.add(numbers[ours], numbers[actual])


def _listed(row: Row, column: str, what: str) -> list[Any]:
    value = value_of(row, column)
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise wrong(column, value, f"a list of {what}, or a string of them")
    return list(value) if not isinstance(value, np.ndarray) else value.tolist()


def _inside(name: str) -> str:
    return f"I-{name[2:]}" if name.startswith("B-") else name
