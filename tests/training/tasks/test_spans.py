"""Spans against a search that looks at every one."""

import numpy as np
import pytest

from bert_fast.training.tasks.spans import best_spans, tokens_of

OFFSETS = np.array([[-1, -1], [-1, -1], [0, 3], [3, 4], [5, 9], [9, 11], [-1, -1]])


@pytest.mark.parametrize(
    ("start", "end", "tokens"),
    [
        (0, 3, (2, 2)),
        (0, 11, (2, 5)),
        (3, 9, (3, 4)),
        (9, 11, (5, 5)),  # in the last token
        (1, 2, (2, 2)),  # within a token
        (6, 10, (4, 5)),
        (0, 12, None),  # goes on after the window
        (12, 14, None),
    ],
)
def test_tokens_of_characters(start, end, tokens):
    assert tokens_of(OFFSETS, start, end) == tokens


def test_a_window_that_begins_later_or_has_no_text():
    later = OFFSETS + np.where(OFFSETS >= 0, 20, 0)
    assert tokens_of(later, 3, 25) is None
    assert tokens_of(later, 23, 29) == (3, 4)
    assert tokens_of(np.full((3, 2), -1), 0, 1) is None


def by_hand(windows, count, longest):
    scores = {}
    for offsets, logits in windows:
        inside = [i for i, (start, _) in enumerate(offsets) if start >= 0]
        for a, first in enumerate(inside):
            for last in inside[a : a + longest]:
                span = int(offsets[first][0]), int(offsets[last][1])
                score = float(logits[first][0]) + float(logits[last][1])
                scores[span] = max(score, scores.get(span, -np.inf))
    return sorted(((*span, score) for span, score in scores.items()), key=lambda s: (-s[2], s[:2]))[:count]


@pytest.mark.parametrize(("count", "longest"), [(1, 1), (3, 2), (20, 4), (20, 100), (1000, 5)])
def test_best_spans(count, longest):
    rng = np.random.default_rng(0)
    windows = []
    for first in (0, 6, 12):  # neighbours share tokens
        ends = np.arange(first, first + 10) * 5 + 4
        offsets = np.concatenate(([[-1, -1]] * 3, np.stack((ends - 4, ends), 1), [[-1, -1]]))
        windows.append((offsets, rng.normal(size=(14, 2)).astype(np.float32)))
    found = best_spans(windows, count, longest)
    wanted = by_hand(windows, count, longest)
    assert [span[:2] for span in found] == [span[:2] for span in wanted]
    assert [span.score for span in found] == pytest.approx([span[2] for span in wanted])


def test_no_text_has_no_span():
    assert best_spans([(np.full((3, 2), -1), np.zeros((3, 2), np.float32))], 5, 5) == []
    assert best_spans([], 5, 5) == []
