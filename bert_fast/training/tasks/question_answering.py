"""Extractive question answering, as in SQuAD: where in a text the answer stands, or that it does not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tokenizers

from bert_fast.tokenizer import UNLIMITED, Tokenizer
from bert_fast.training.data import Example
from bert_fast.training.metrics import SquadScores
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
from bert_fast.training.tasks.spans import best_spans, tokens_of

_NOWHERE = (-1, -1)


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """The span of a context that answers a question.

    A context that is too long is read in windows; the question is never cut. An answer outside a window, and a question
    without one, is learned as the first token, [CLS].

    Args:
        question, context: the columns of the texts.
        answers: the column of the answers: ``{"text": [...], "answer_start": [...]}`` as in SQuAD's data sets, a list
            of ``{"text": ..., "answer_start": ...}``, or either as a string of JSON; empty where there is no answer.
            The first one is learned, the best one counts.
        stride: how many tokens of context neighbouring windows share.
        n_best: how many spans a prediction weighs and lists.
        max_answer_length: tokens of an answer.
        no_answer: whether "there is no answer" may be predicted (SQuAD 2.0); None: whether a training row has none.
        no_answer_threshold: by how much that must score above the best span.
    """

    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    stride: int = 128
    n_best: int = 20
    max_answer_length: int = 30
    no_answer: bool | None = None
    no_answer_threshold: float = 0.0

    name = "qa"
    model_class = "BertForQuestionAnswering"
    label_kind = "span"
    default_length = 384
    metric = "f1"

    def __post_init__(self) -> None:
        for option, least in (("stride", 0), ("n_best", 1), ("max_answer_length", 1)):
            if getattr(self, option) < least:
                raise ValueError(f"{option} must be at least {least}, not {getattr(self, option)}")

    # ---------------------------------------------------------------- rows

    def record(self, row: Row, labelled: bool = True) -> Record:
        """Question and context, and the answers as (text, first character)."""
        question, context = text_of(row, self.question), text_of(row, self.context)
        return Record((question, context), self._answers(row, context) if labelled else None)

    def _answers(self, row: Row, context: str) -> list[tuple[str, int]]:
        value = found = value_of(row, self.answers)
        try:
            if isinstance(found, str):
                found = json.loads(found)
            if isinstance(found, Mapping):
                pairs = list(zip(list(found["text"]), list(found["answer_start"]), strict=True))
            else:
                pairs = [(answer["text"], answer["answer_start"]) for answer in found]
        except (ValueError, TypeError, KeyError):
            allowed = 'SQuAD\'s {"text": [...], "answer_start": [...]}, equally many of both'
            raise wrong(self.answers, value, allowed) from None
        for text, start in pairs:
            a_place = isinstance(start, (int, np.integer)) and not isinstance(start, bool)
            if not isinstance(text, str) or not text or not a_place:
                raise wrong(self.answers, (text, start), "texts that are not empty, and where each one starts")
            if start < 0 or not context.startswith(text, start):
                there = context[max(start, 0) : max(start, 0) + len(text)]
                raise ValueError(
                    f"column {self.answers!r}: the answer {text[:60]!r} is not at character {start} of "
                    f"{self.context!r}, where {there[:60]!r} stands"
                )
        return [(text, int(start)) for text, start in pairs]

    def learned(self, records: Iterable[Record]) -> QuestionAnswering:
        """With whether questions may have no answer, unless that was given."""
        if self.no_answer is not None:
            return self
        return replace(self, no_answer=any(not record.target for record in records))

    def encoded(self, records: Sequence[Record], tokenizer: Tokenizer, max_length: int, whole: bool = False) -> Encoded:
        """An example for each window of a record's context."""
        questions = [record.inputs[0] for record in records]
        self._check_room(questions, tokenizer, max_length)
        contexts = [record.inputs[1] for record in records]
        found = tokenizer(questions, contexts, truncation="only_second", max_length=max_length, stride=self.stride)
        examples = [
            [self._example(window, record.target) for window in (encoding, *encoding.overflowing)]
            for record, encoding in zip(records, found.encodings, strict=True)
        ]
        return Encoded(examples, 0)

    def _check_room(self, questions: Sequence[str], tokenizer: Tokenizer, limit: int) -> None:
        room = limit - tokenizer.num_special_tokens_to_add(pair=True) - self.stride
        asked = tokenizer.encode_batch(questions, max_length=UNLIMITED, add_special_tokens=False).input_ids
        for question, ids in zip(questions, asked, strict=True):
            if len(ids) >= room:
                raise ValueError(
                    f"the question {question[:60]!r} has {len(ids)} tokens, which leaves no room in windows of {limit} "
                    f"tokens that share {self.stride}: raise max_length or lower stride"
                )

    def _example(self, window: tokenizers.Encoding, answers: Sequence[tuple[str, int]] | None) -> Example:
        offsets = np.array(window.offsets, dtype=np.int32).reshape(-1, 2)
        offsets[[part != 1 for part in window.sequence_ids]] = _NOWHERE
        labels = None
        if answers is not None:
            text, start = answers[0] if answers else ("", -1)
            labels = tokens_of(offsets, start, start + len(text)) if answers else None
            labels = labels or (0, 0)
        return Example(np.asarray(window.ids), np.asarray(window.type_ids), labels, {"offsets": offsets})

    # ---------------------------------------------------------------- model

    def config(self) -> dict[str, Any]:
        """Two outputs: start and end."""
        return {"num_labels": 2}

    def prediction(self, record: Record, examples: Sequence[Example], logits: Sequence[np.ndarray]) -> Prediction:
        """``answer``, its ``score``, ``start`` and ``end`` in the context (null for no answer), and ``n_best``.

        Scores are probabilities among ``n_best``. With ``no_answer``, one of these is the empty answer, and
        ``no_answer_score`` is by how much it lies above the best span: the higher, the less likely is an answer.
        """
        context: str = record.inputs[1]
        windows = [(example.info["offsets"], rows) for example, rows in zip(examples, logits, strict=True)]
        spans = best_spans(windows, self.n_best, self.max_answer_length)
        listed = [{"answer": context[s.start : s.end], "start": s.start, "end": s.end} for s in spans]
        weights = [span.score for span in spans]
        # in its cheapest window: an answer that one window holds is missing from the others
        nothing = min((float(rows[0].astype(np.float64).sum()) for rows in logits), default=0.0)
        above = nothing - weights[0] if weights else np.inf
        if self.no_answer or not listed:
            place = sum(weight >= nothing for weight in weights)
            listed.insert(place, {"answer": "", "start": None, "end": None})
            weights.insert(place, nothing)
        for entry, probability in zip(listed, softmax(np.array(weights)), strict=True):
            entry["score"] = rounded(probability)
        silent = not spans or (self.no_answer and above > self.no_answer_threshold)
        chosen = next(entry for entry in listed if (entry["start"] is None) == bool(silent))
        predicted: Prediction = {**chosen, "n_best": listed}
        if self.no_answer:
            predicted["no_answer_score"] = rounded(above) if spans else None
        return predicted

    def scores(self) -> SquadScores:
        """Exact match and F1."""
        return SquadScores()

    def score(self, scores: SquadScores, record: Record, prediction: Prediction) -> None:
        """Count a record."""
        scores.add(prediction["answer"], [text for text, _ in record.target])
