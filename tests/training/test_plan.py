"""Plans: every example once, the same for any number of ranks, random and grouped, and nothing but their arguments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_fast.training.data import BatchPlan

QUICK = settings(max_examples=60, deadline=None)
LENGTHS = np.random.default_rng(0).gamma(2.0, 40.0, 5000).astype(np.int64) + 2


@st.composite
def plans(draw):
    by = draw(st.sampled_from(["batch_size", "max_tokens", "both"]))
    lengths = draw(st.lists(st.integers(0, 40), max_size=80))
    options = {"shuffle": draw(st.booleans()), "group_by_length": draw(st.booleans()), "seed": draw(st.integers(0, 99))}
    if by != "max_tokens":
        options["batch_size"] = draw(st.integers(1, 9))
    if by != "batch_size":
        options["max_tokens"] = draw(st.integers(1, 90))
    else:
        options["drop_last"] = draw(st.booleans())
    return BatchPlan(lengths, **options)


@QUICK
@given(plans(), st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_every_example_once_in_the_same_batches_for_any_number_of_ranks(plan, epoch, world_size):
    whole = plan.batches(epoch)
    flat = np.concatenate(whole) if whole else np.empty(0, dtype=np.int64)
    count = len(plan.lengths) // plan.batch_size * plan.batch_size if plan.drop_last else len(plan.lengths)
    assert len(set(flat.tolist())) == flat.size == count
    for batch in whole:
        assert batch.size and batch.dtype == np.int64
        assert plan.batch_size is None or batch.size <= plan.batch_size
        assert plan.max_tokens is None or plan.lengths[batch].sum() <= plan.max_tokens or batch.size == 1
    if plan.max_tokens is None:
        assert all(batch.size == plan.batch_size for batch in whole[:-1])
    shares = [plan.batches(epoch, rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(whole)}, "all ranks make the same number of steps"
    for step, batch in enumerate(whole):
        dealt = [share[step] for share in shares]
        assert sorted(np.concatenate(dealt).tolist()) == sorted(batch.tolist())
        sizes = [d.size for d in dealt]
        assert max(sizes) - min(sizes) <= 1
        # each full round there and back gives every rank two, so that only the longest may be too many
        tokens = [int(plan.lengths[d].sum()) for d in dealt]
        if batch.size % (2 * world_size) == 0:
            assert max(tokens) - min(tokens) <= plan.lengths[batch].max() - plan.lengths[batch].min()


@QUICK
@given(plans(), st.integers(0, 9))
def test_a_plan_depends_on_its_arguments_alone(plan, epoch):
    again = BatchPlan(plan.lengths.copy(), **{k: v for k, v in vars(plan).items() if k != "lengths"})
    np.random.seed(epoch)
    first, second = plan.batches(epoch), again.batches(epoch)
    assert [b.tolist() for b in first] == [b.tolist() for b in second]
    if not plan.shuffle:
        assert [b.tolist() for b in plan.batches(epoch + 1)] == [b.tolist() for b in first]


def test_a_plan_is_the_same_with_any_numpy():
    """What is written down here must come out on every machine and with every version, or no run could go on."""
    plan = BatchPlan([5, 3, 9, 1, 7, 2, 8, 4, 6, 0], batch_size=4, shuffle=True, seed=1)
    assert [b.tolist() for b in plan.batches(2)] == EXPECTED
    grouped = BatchPlan(plan.lengths, max_tokens=20, shuffle=True, group_by_length=True, seed=1)
    assert [b.tolist() for b in grouped.batches(2)] == EXPECTED_GROUPED


EXPECTED = [[2, 8, 0, 9], [4, 7, 3, 1], [5, 6]]
EXPECTED_GROUPED = [[4, 8, 0], [2, 6], [7, 1, 5, 3, 9]]


@pytest.mark.parametrize("options", [{"batch_size": 32}, {"max_tokens": 3000}, {"batch_size": 64, "max_tokens": 3000}])
def test_grouping_makes_batches_alike_and_stays_random(options):
    plain = BatchPlan(LENGTHS, shuffle=True, seed=3, **options)
    grouped = BatchPlan(LENGTHS, shuffle=True, group_by_length=True, seed=3, **options)
    spread = {}
    for name, plan in [("plain", plain), ("grouped", grouped)]:
        batches = plan.batches(0)
        padded = sum(LENGTHS[b].max() * b.size for b in batches)
        spread[name] = 1 - LENGTHS.sum() / padded
        # who meets whom: of two epochs' batches hardly any two are equal
        together = {frozenset(b.tolist()) for b in batches}
        assert len(together & {frozenset(b.tolist()) for b in plan.batches(1)}) <= 2
        # neither numbers nor lengths of the batches drift through the epoch
        means = np.array([b.mean() for b in batches])
        assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3
        lengths = np.array([LENGTHS[b].mean() for b in batches])
        assert abs(np.corrcoef(lengths, np.arange(len(lengths)))[0, 1]) < 0.3
    assert spread["grouped"] < 0.1 < 0.3 < spread["plain"]


def test_every_example_comes_first_about_as_often():
    counts = np.zeros(10)
    plan = BatchPlan(np.arange(10), batch_size=2, shuffle=True, seed=11)
    for epoch in range(2000):
        counts[plan.batches(epoch)[0][0]] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 33.7, "chi-squared, 9 degrees of freedom, p = 1e-4"


def test_without_shuffling_the_order_is_kept_or_the_longest_come_first():
    assert [b.tolist() for b in BatchPlan([1, 5, 3], batch_size=2).batches()] == [[0, 1], [2]]
    assert [b.tolist() for b in BatchPlan([1, 5, 3], batch_size=2, group_by_length=True).batches()] == [[1, 2], [0]]


def test_seeds_epochs_and_parts_give_other_orders():
    orders = {
        tuple(np.concatenate(BatchPlan(LENGTHS, batch_size=9, shuffle=True, seed=seed).batches(epoch, part=part))[:20])
        for seed, epoch, part in [
            (0, 0, 0),
            (1, 0, 0),
            (2**64 - 1, 0, 0),
            (0, 1, 0),
            (0, 2**32 - 1, 0),
            (0, 0, 2**24 - 1),
        ]
    }
    assert len(orders) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give batch_size, max_tokens or both"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"max_tokens": 2.5}, "max_tokens must be an integer"),
        ({"max_tokens": 5, "drop_last": True}, "drop_last needs batches of batch_size"),
        ({"batch_size": 1, "seed": -1}, "seed must be in 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BatchPlan([1, 2], **options)
    with pytest.raises(ValueError, match="lengths must be at least 0, not -1"):
        BatchPlan([-1], batch_size=1)
    with pytest.raises(ValueError, match="rank must be in 0 .. world_size - 1 = 1, not 2"):
        BatchPlan([1], batch_size=1).batches(0, 2, 2)
    with pytest.raises(ValueError, match="part must be in 0"):
        BatchPlan([1], batch_size=1).batches(part=2**24)
