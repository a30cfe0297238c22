"""SQuAD's exact match and F1 (Rajpurkar et al., 2016 and 2018), normalised as the official scripts do."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and surplus white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1.0 if both are the same once normalised, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the words that both have, once normalised; where one has none, 1.0 if the other has none either."""
    predicted, actual = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not actual:
        return float(predicted == actual)
    shared = sum((Counter(predicted) & Counter(actual)).values())
    return 2 * shared / (len(predicted) + len(actual))


class SquadScores:
    """Exact match and F1 in percent, over all questions and, where some have no answer, over both kinds."""

    def __init__(self) -> None:
        self._sums: dict[bool, list[float]] = {True: [0.0, 0.0, 0.0], False: [0.0, 0.0, 0.0]}

    def add(self, predicted: str, answers: Sequence[str]) -> None:
        """Count one question: ``predicted`` ("" says there is no answer) against the best of ``answers``.

        Answers that are nothing once normalised do not count; where none is left, the question has no answer.
        """
        golds = [answer for answer in answers if normalize_answer(answer)]
        sums = self._sums[bool(golds)]
        sums[0] += 1
        sums[1] += max(exact_match(predicted, gold) for gold in golds or [""])
        sums[2] += max(token_f1(predicted, gold) for gold in golds or [""])

    def compute(self) -> dict[str, float]:
        """``exact_match`` and ``f1``; with unanswerable questions also ``has_answer_...`` and ``no_answer_...``."""
        with_answer, without = self._sums[True], self._sums[False]
        scores = _percent([a + b for a, b in zip(with_answer, without, strict=True)], "")
        if without[0]:
            scores |= _percent(with_answer, "has_answer_") | _percent(without, "no_answer_")
        return scores


def _percent(sums: Sequence[float], prefix: str) -> dict[str, float]:
    count, exact, f1 = sums
    return {f"{prefix}exact_match": 100 * exact / (count or 1), f"{prefix}f1": 100 * f1 / (count or 1)}
