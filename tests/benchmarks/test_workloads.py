"""Mixes of lengths, padding, arrivals, the server, the fits and the pairs of --against: what numbers rest on."""

import math
import statistics

import pytest
import torch

from benchmarks import rounds
from benchmarks.against import paired
from benchmarks.sections.scaling import fitted
from benchmarks.sections.scenario import arrivals, served
from benchmarks.shapes import SHAPES, flops
from benchmarks.workloads import MIXES, batches, padded_lengths, random_ids


@pytest.mark.parametrize(
    ("name", "mean", "longest"),
    [("uniform", 64.5, 128), ("squad", 175, 384), ("queries", 12, 64), ("news", 60, 256), ("reviews", 200, 512)],
)
def test_mixes_have_the_mean_they_are_named_for(name, mean, longest):
    lengths = MIXES[name](4000)
    assert statistics.mean(lengths) == pytest.approx(mean, rel=0.05)
    assert min(lengths) >= 1 and max(lengths) <= longest
    assert MIXES[name](50) == MIXES[name](50)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.9])
@pytest.mark.parametrize(("count", "longest"), [(32, 128), (6, 64), (2, 50)])
def test_padding_is_what_was_asked_for(share, count, longest):
    if (1 - share) * count * longest - longest < count - 1:
        with pytest.raises(ValueError, match="padding must be"):
            padded_lengths(count, longest, share)
        return
    lengths = padded_lengths(count, longest, share)
    (batch,) = batches(random_ids(lengths, 50), count)
    assert max(lengths) == longest and min(lengths) >= 1
    assert batch.padding == pytest.approx(share, abs=0.5 / (count * longest))
    assert batch.input_ids[batch.attention_mask == 0].abs().max().item() == 0 if share else True


def test_sorting_loses_no_text_and_saves_padding():
    ids = random_ids(MIXES["news"](100), 500)
    given, by_length = batches(ids, 8), batches(ids, 8, by_length=True)
    assert sorted(row for b in given for row in b.sequences()) == sorted(ids)
    assert sorted(row for b in by_length for row in b.sequences()) == sorted(ids)
    places = [sum(b.input_ids.numel() for b in found) for found in (given, by_length)]
    assert places[1] < places[0]


def test_operations_are_the_designs():
    for size, a_token, a_pair in (("base", 169.9e6, 36.9e3), ("large", 604.0e6, 98.3e3)):
        assert flops(SHAPES[size], [128]) == pytest.approx(128 * a_token + 128**2 * a_pair, rel=1e-3)


def test_arrivals_are_poisson():
    times = arrivals(20000, 50.0, seed=3)
    gaps = torch.tensor(times).diff()
    assert times == sorted(times)
    assert gaps.mean().item() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std().item() == pytest.approx(1 / 50, rel=0.05)  # of an exponential: its mean


def test_the_server_answers_in_order_and_nobody_before_he_came():
    sizes = []

    def answer(rows):
        sizes.append(len(rows))
        return 1.0

    # At 0 one query is alone; while it is answered four more come, of which three fit; at 10 all is idle.
    waits = served([[1]] * 6, [0.0, 0.1, 0.2, 0.3, 0.4, 10.0], 3, answer)
    assert sizes == [1, 3, 1, 1]
    assert waits == pytest.approx([1.0, 1.9, 1.8, 1.7, 2.6, 1.0])


def test_a_fit_finds_the_law_it_was_given():
    batch = (1, 2, 4, 8, 16)
    found = fitted("batch", batch, [(200 + 35 * n) / 1e6 for n in batch])
    assert (found["fixed_us"], found["each_us"]) == pytest.approx((200, 35))
    assert found["explained"] == pytest.approx(1)
    hidden = (128, 256, 512)
    assert fitted("hidden", hidden, [3e-9 * n**1.8 for n in hidden])["power"] == pytest.approx(1.8)
    assert fitted("batch", batch, [1.0, 9.0, 2.0, 8.0, 1.5])["explained"] < 0.5


@pytest.mark.parametrize(
    ("now", "verdict"), [([0.5, 0.51, 0.49, 0.5, 0.5], "faster"), ([1.0, 0.98, 1.02, 0.99, 1.0], "same"),
                         ([1.2, 1.25, 1.2, 1.3, 1.2], "SLOWER"), ([0.2, 3.0, 0.5, 2.0, 1.0], "same"),
                         ([3.0, 1.0, 3.0, 3.0, 3.0], "same")],
)  # fmt: skip
def test_a_revision_is_faster_only_where_the_rounds_agree(now, verdict):
    assert paired([(1.0, seconds) for seconds in now])["verdict"] == verdict


def test_contenders_take_turns_and_nobody_always_goes_first():
    order = []
    contenders = {name: lambda name=name: order.append(name) for name in "abc"}
    found = rounds.samples(contenders, 3, warmup=0)
    assert "".join(order) == "abcbcacab"
    assert all(len(times) == 3 for times in found.values())


def test_a_budget_ends_the_rounds_but_not_before_the_least(monkeypatch):
    now = 0.0

    def run():
        nonlocal now
        now += 2.0

    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now)
    assert len(rounds.samples({"a": run}, 100, budget=1.0, at_least=4)["a"]) == 4
    assert len(rounds.samples({"a": run}, 100, budget=21.0, at_least=4)["a"]) == 10
    assert math.isclose(statistics.median(rounds.samples({"a": run}, 5)["a"]), 2.0)
