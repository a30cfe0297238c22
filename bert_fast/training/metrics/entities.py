"""Named entities in tagged sentences, and how many were found: what `conlleval` and seqeval count.

seqeval 1.2.2 (2020) is the reference and has had no release since, so the rules are written out here; the tests compare
them with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_PREFIXED = re.compile(r"[BIES]-.+", re.DOTALL)


class Entity(NamedTuple):
    """Words ``start`` to ``end`` (exclusive) of a sentence, and their type."""

    type: str
    start: int
    end: int


def are_entity_tags(labels: Iterable[str]) -> bool:
    """Whether labels are entity tags: ``O`` and, at least once, ``B-``, ``I-``, ``E-`` or ``S-`` before a type."""
    others = [label for label in labels if label != "O"]
    return bool(others) and all(_PREFIXED.fullmatch(label) for label in others)


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, in order.

    IOB1, IOB2, IOE and IOBES are all understood. A tag goes on with the entity before it if it is ``I-`` or ``E-`` of
    the same type and that entity has not ended (``E-``, ``S-``, ``O``); any other tag but ``O`` begins one.

    Args:
        tags: each ``O`` or a prefix of ``B-``, ``I-``, ``E-``, ``S-`` and a type.

    Raises:
        ValueError: a tag is none of these.
    """
    found: list[Entity] = []
    open_type: str | None = None
    start = 0
    for index, tag in enumerate(tags):
        prefix, kind = _split(tag)
        if open_type is not None and not (prefix in "IE" and kind == open_type):
            found.append(Entity(open_type, start, index))
            open_type = None
        if prefix == "O":
            continue
        if open_type is None:
            open_type, start = kind, index
        if prefix in "ES":
            found.append(Entity(kind, start, index + 1))
            open_type = None
    if open_type is not None:
        found.append(Entity(open_type, start, len(tags)))
    return found


def _split(tag: str) -> tuple[str, str]:
    if tag == "O":
        return "O", ""
    if not _PREFIXED.fullmatch(tag):
        raise ValueError(f"{tag!r} is no entity tag: allowed are O and B-, I-, E-, S- before a type")
    return tag[0], tag[2:]


class EntityScores:
    """Precision, recall and F1 of entities, over all and per type, and the accuracy of tags."""

    def __init__(self) -> None:
        self._correct: Counter[str] = Counter()
        self._predicted: Counter[str] = Counter()
        self._actual: Counter[str] = Counter()
        self._tags = self._right_tags = 0

    def add(self, predicted: Sequence[str], actual: Sequence[str]) -> None:
        """Count one sentence. Raises ValueError where the lengths differ or a tag is no entity tag."""
        if len(predicted) != len(actual):
            raise ValueError(f"{len(predicted)} predicted tags for {len(actual)} words")
        found, there = set(entities(predicted)), set(entities(actual))
        self._correct.update(entity.type for entity in found & there)
        self._predicted.update(entity.type for entity in found)
        self._actual.update(entity.type for entity in there)
        self._tags += len(actual)
        self._right_tags += sum(map(str.__eq__, predicted, actual))

    def compute(self) -> dict[str, float]:
        """``precision``, ``recall`` and ``f1`` of all entities, ``accuracy`` of tags, ``f1/TYPE``; 0 of 0 is 0."""
        totals = (sum(counter.values()) for counter in (self._correct, self._predicted, self._actual))
        precision, recall, f1 = _scores(*totals)
        scores = {"precision": precision, "recall": recall, "f1": f1}
        scores["accuracy"] = self._right_tags / self._tags if self._tags else 0.0
        for kind in sorted(self._predicted | self._actual):
            scores[f"f1/{kind}"] = _scores(self._correct[kind], self._predicted[kind], self._actual[kind])[2]
        return scores


def _scores(correct: int, predicted: int, actual: int) -> tuple[float, float, float]:
    precision = correct / predicted if predicted else 0.0
    recall = correct / actual if actual else 0.0
    return precision, recall, 2 * correct / (predicted + actual) if predicted + actual else 0.0
