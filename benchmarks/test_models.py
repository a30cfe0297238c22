"""Whole encoders as pytest-benchmarks: a group a workload, a test a peer and order of the texts."""

from __future__ import annotations

import functools

import pytest

from benchmarks import peers
from benchmarks.replay import CLOCK, benchmarked
from benchmarks.sections.encoders import base_model, prepared
from benchmarks.sections.latency import LENGTHS
from benchmarks.sections.model import AS_GIVEN, PADDING, SORTED, one_pass, workloads
from benchmarks.sections.training import steps_of
from benchmarks.workloads import MIXES, batches, collate, random_ids

WORKLOADS = [*(f"mix {name}" for name in MIXES), *(f"padding {share:.0%}" for share in PADDING)]


@pytest.fixture(scope="session")
def model(settings):
    return base_model(settings)


@pytest.fixture(scope="session")
def workload_ids(settings, model):
    return dict(workloads(settings, model))


@pytest.fixture(scope="session")
def encoder(settings, model):
    """By a peer's name its encoder; skips where there is none, fails or expects to where it is wrong."""

    @functools.cache
    def found(name):
        return next(prepared(settings, model, (name,)))

    def prepare(name):
        contender, row = found(name)
        if "not run" in row:
            pytest.skip(f"{row['peer']}: {row['not run']}")
        if contender is None:
            said = f"{row['peer']} is wrong and not timed: {row}"
            if name == "ours":
                pytest.fail(said)
            pytest.xfail(said)
        return contender

    return prepare


@pytest.mark.parametrize("peer", peers.NAMES)
@pytest.mark.parametrize("order", [AS_GIVEN, SORTED], ids=["as_given", "sorted"])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.benchmark(timer=CLOCK)
def test_throughput(workload, order, peer, benchmark, settings, workload_ids, encoder):
    ids = workload_ids[workload]
    if order == SORTED and len(ids) <= settings.batch_size:
        pytest.skip("one batch has no order")
    contender = encoder(peer)
    given = [settings.to_device(b) for b in batches(ids, settings.batch_size, by_length=order == SORTED)]
    benchmark.group = f"{workload}, {order}"
    benchmarked(benchmark, settings.context, [one_pass(contender.encode, given)], "steady")
    tokens = sum(map(len, ids))
    benchmark.extra_info |= {"peer": contender.name, "version": contender.version, "tokens": tokens}
    benchmark.extra_info |= {"error_ratio": contender.error_ratio, "dtype": settings.dtype}
    if benchmark.stats is not None:
        benchmark.extra_info["tokens_per_s"] = tokens / benchmark.stats.stats.median


@pytest.mark.parametrize("peer", peers.NAMES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.benchmark(timer=CLOCK)
def test_latency(length, peer, benchmark, settings, model, encoder):
    if length > model.config.max_position_embeddings:
        pytest.skip(f"the model has positions for {model.config.max_position_embeddings} tokens")
    contender = encoder(peer)
    batch = settings.to_device(collate(random_ids([length], model.config.vocab_size, seed=length)))
    benchmark.group = f"latency, 1 x {length}"
    benchmarked(benchmark, settings.context, [lambda: contender.encode(batch)], "latency")


@pytest.mark.parametrize("way", ["bert_fast", "bert_fast, without logits", "transformers"])
@pytest.mark.benchmark(timer=CLOCK)
def test_training_step(way, benchmark, settings):
    benchmark.group = "training, masked words"
    benchmarked(benchmark, settings.context, [dict(steps_of(settings))[way]], "steady")
