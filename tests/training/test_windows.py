"""Windows: best-fit decreasing by its definition, in C++ and in Python; bounds, edges, errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training import by_definition as plain
from training.by_definition import needs_extension, running, ways

from bert_fast.training.windows import pack_windows

QUICK = settings(max_examples=150, deadline=None)


@st.composite
def cases(draw):
    window = draw(st.sampled_from([1, 7, 63, 64, 65, 4096, 300_000]))
    return draw(st.lists(st.integers(0, window), max_size=40)), window


def check(windows, lengths, window):
    assert windows.order.dtype == windows.offsets.dtype == np.int64
    assert sorted(windows.order.tolist()) == list(range(len(lengths))), "every sequence exactly once"
    assert windows.offsets[0] == 0 and windows.offsets[-1] == len(lengths)
    totals = [sum(lengths[i] for i in held) for held in windows]
    assert all(len(held) for held in windows)
    assert all(total <= window for total in totals)
    assert windows.utilization == pytest.approx(sum(totals) / (window * len(windows)) if len(windows) else 1.0)


@ways
@QUICK
@given(cases())
def test_windows_are_best_fit_decreasing(fallback, case):
    lengths, window = case
    with running(fallback):
        windows = pack_windows(lengths, window)
    check(windows, lengths, window)
    assert [held.tolist() for held in windows] == plain.best_fit_decreasing(lengths, window)


@needs_extension
@pytest.mark.parametrize("window", [128, 512, 5000, 2**24])
def test_both_ways_agree_on_many_sequences(window):
    lengths = np.random.default_rng(window).gamma(2.0, 40.0, 20000).astype(np.int64).clip(1, window)
    windows = pack_windows(lengths, window)
    check(windows, lengths, window)
    assert len(windows) <= 11 / 9 * np.ceil(lengths.sum() / window) + 4 or lengths.max() > window / 3
    with running(fallback=True):
        plain_windows = pack_windows(lengths, window)
    assert np.array_equal(windows.order, plain_windows.order)
    assert np.array_equal(windows.offsets, plain_windows.offsets)


def test_lengths_that_fit_together_fill_windows_to_the_last_token():
    lengths = [300, 212, 100, 412, 512, 256, 256, 1, 511]
    windows = pack_windows(torch.tensor(lengths), 512)
    assert (len(windows), windows.utilization) == (5, 1.0)
    assert [windows[k].tolist() for k in range(5)] == [[4], [8, 7], [3, 2], [0, 1], [5, 6]]
    with pytest.raises(IndexError, match="window 5 of 5"):
        windows[5]


@ways
def test_no_sequences_and_empty_ones(fallback):
    for lengths in ([], [0], [0, 9, 0]):
        with running(fallback):
            check(pack_windows(lengths, 9), lengths, 9)


@pytest.mark.parametrize(
    ("lengths", "window", "message"),
    [
        ([3, 10], 9, "lengths\\[1\\] must be in 0 .. 9, the window, not 10: cut it first"),
        ([3, -1], 9, "lengths\\[1\\] must be in 0 .. 9, the window, not -1"),
        ([3], 0, "window must be in 1 .. 2\\*\\*24, not 0"),
        ([3], 2**24 + 1, "window must be in 1 .. 2\\*\\*24, not 16777217"),
        ([[3]], 9, "lengths must have one dimension"),
    ],
)
def test_bad_arguments_are_named(lengths, window, message):
    with pytest.raises(ValueError, match=message):
        pack_windows(lengths, window)
