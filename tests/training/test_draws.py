"""Draws: Philox by the paper, ranges, and that no two purposes or indices share them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training import by_definition as plain

from bert_fast.training import draws
from bert_fast.training.draws import Draws, Purpose

M32 = 2**32 - 1
# Random123's known answers for philox4x32-10: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((M32, M32, M32, M32), 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_random123s_known_answers(counter, key, answer):
    got = draws.philox(tuple(np.array([c], dtype=np.uint64) for c in counter), key)
    assert got.tolist() == [list(answer)]
    assert plain.philox(counter, (key & M32, key >> 32)) == answer


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, M32), st.sampled_from(Purpose), st.integers(0, 2**56 - 1))
def test_draws_are_the_definitions(seed, epoch, purpose, index):
    got, want = Draws(seed, epoch, purpose, index), plain.Stream(seed, epoch, int(purpose), index)
    sizes = [1, 2, 3, 7, 1000, 2**31, 2**32 - 1] * 6
    assert [got.below(n) for n in sizes] == [want.below(n) for n in sizes]
    assert [got.chance(draws.threshold(p)) for p in (0, 0.3, 0.5, 1)] == [want.chance(p) for p in (0, 0.3, 0.5, 1)]
    high, low = np.array([0, 1, M32, 12345]).astype(np.uint64), np.array([0, M32, M32, 999]).astype(np.uint64)
    for n in sizes[:7]:
        exact = [(h << 32 | w) * n >> 64 for h, w in zip(high.tolist(), low.tolist(), strict=True)]
        assert draws.scaled_below(high, low, n).tolist() == exact


def test_purposes_indices_epochs_and_seeds_share_no_words():
    at = [(s, e, p, i) for s in (0, 1, 2**32) for e in (0, 1) for p in Purpose for i in (0, 1, 2**32, 2**55)]
    rows = [tuple(draws.words(s, e, p, np.array([i]), np.array([0]))[0].tolist()) for s, e, p, i in at]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("seed", "epoch", "message"),
    [(-1, 0, "seed must be in 0 .. 2\\*\\*64 - 1, not -1"), (2**64, 0, "seed must be"), (0, 2**32, "epoch must be")],
)
def test_seeds_and_epochs_outside_their_range_are_errors(seed, epoch, message):
    with pytest.raises(ValueError, match=message):
        draws.check_seed(seed, epoch)
