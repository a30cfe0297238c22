"""Every op, direction and provider as a pytest-benchmark: ``pytest benchmarks -k "layer_norm and forward"``.

A group is an op in one direction. ``extra_info`` holds GB/s, TFLOP/s, the share of the roof and the error.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from benchmarks.measure import SETS, row_of, runs_of, verdict
from benchmarks.replay import CLOCK, benchmarked
from benchmarks.roofs import Roof, rates, roofs
from benchmarks.sections.kernels import specs
from benchmarks.specs.spec import Spec
from benchmarks.timing import Timing


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    from benchmarks.conftest import SETTINGS

    cases = [
        pytest.param((name, spec, provider.name, direction), id=f"{name}-{direction}-{provider.name}".replace(" ", "_"))
        for name, spec in specs(metafunc.config.stash[SETTINGS])
        for direction in spec.directions
        for provider in spec.providers
    ]
    metafunc.parametrize("case", cases)


@pytest.fixture(scope="session")
def roof(settings):
    return Roof.of(roofs(settings.context))


@pytest.fixture(scope="session")
def prepared(settings):
    """Of the op at hand: its inputs, and each provider's verdict; the op before it is forgotten."""
    here = settings.context

    @functools.lru_cache(maxsize=1)
    def inputs(name: str, spec: Spec) -> tuple[Any, ...]:
        here.forget_compiled()
        checked = spec.make(here.sizes.checked, 1)
        given = [spec.make(here.sizes.tokens, 2 + i) for i in range(SETS)]
        return checked, given, {}

    def prepare(name: str, spec: Spec, provider: str) -> tuple[Any, ...]:
        checked, given, verdicts = inputs(name, spec)
        chosen = next(p for p in spec.providers if p.name == provider)
        if provider not in verdicts:
            verdicts[provider] = verdict(spec, chosen, checked, here)
        return chosen, given, verdicts[provider]

    return prepare


@pytest.mark.benchmark(timer=CLOCK)
def test_kernel(case, benchmark, settings, prepared, roof):
    name, spec, provider_name, direction = case
    here = settings.context
    provider, given, found = prepared(name, spec, provider_name)
    if "not run" in found:
        pytest.skip(f"{provider_name}: {found['not run']}")
    if found["right"] is not True:
        said = f"{provider_name} is wrong and not timed: {found.get('error', found)}"
        if provider_name == spec.providers[0].name:
            pytest.fail(said)
        pytest.xfail(said)
    benchmark.group = f"{name}, {direction}"
    cost = spec.costs(given[0])[direction]
    runs = runs_of(spec, provider, direction, given, here)
    benchmarked(benchmark, here, runs)
    benchmark.extra_info |= {"provider": provider_name, "dtype": settings.dtype, "error_ratio": found["error_ratio"]}
    if benchmark.stats is not None:
        timing = Timing.of(benchmark.stats.stats.data)
        row = row_of(timing) | {"bytes": cost.bytes, "flops": cost.flops}
        benchmark.extra_info |= rates(row, roof)
    peak = here.peak_memory(runs[0])
    if peak is not None:
        benchmark.extra_info["peak_mib"] = peak / 2**20
