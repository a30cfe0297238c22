"""Spans of text among tokens: where an answer stands, and which spans a model thinks most of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) of a text, and the model's score for them."""

    start: int
    end: int
    score: float


def tokens_of(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """The first and the last token of the characters ``start`` to ``end`` (exclusive).

    Args:
        offsets: int ``[tokens, 2]``: each token's first character, and the one after its last; -1 where a token is none
            of the text's.

    Returns:
        None where the tokens there are do not cover both the first and the last of these characters.
    """
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    if not len(inside) or offsets[inside[0], 0] > start or offsets[inside[-1], 1] < end:
        return None
    first = inside[np.searchsorted(offsets[inside, 0], start, side="right") - 1]
    last = inside[np.searchsorted(offsets[inside, 1], end, side="left")]
    return int(first), int(last)


def best_spans(windows: Sequence[tuple[np.ndarray, np.ndarray]], count: int, longest: int) -> list[Span]:
    """The best spans over all windows of a text, best first; one that stands in several windows counts once.

    A span's score is its first token's logit as a start and its last token's as an end, added. Every span of up to
    ``longest`` tokens is looked at, not only those between the best starts and the best ends.

    Args:
        windows: offsets as :func:`tokens_of` has them, and logits float32 ``[tokens, 2]``.
        count: how many spans at most.
        longest: tokens of a span.
    """
    scores: dict[tuple[int, int], float] = {}
    for offsets, logits in windows:
        inside = np.flatnonzero(offsets[:, 0] >= 0)
        if not len(inside):
            continue
        starts, ends = logits[inside].astype(np.float64).T
        reach = min(longest, len(inside))
        padded = np.concatenate((ends, np.full(reach - 1, -np.inf)))
        added = starts[:, None] + np.lib.stride_tricks.sliding_window_view(padded, reach)
        flat = added.ravel()
        kept = np.argpartition(-flat, min(count, flat.size) - 1)[:count]
        for place in kept[np.isfinite(flat[kept])]:
            first, more = divmod(int(place), reach)
            span = int(offsets[inside[first], 0]), int(offsets[inside[first + more], 1])
            scores[span] = max(scores.get(span, -np.inf), float(flat[place]))
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [Span(*span, score) for span, score in ranked]
