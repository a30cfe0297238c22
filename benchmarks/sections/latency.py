"""One text at a time, from the call to the answer: percentiles by length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.counting import host_syncs
from benchmarks.graphs import capture
from benchmarks.peers import peer
from benchmarks.sections.encoders import base_model, ready
from benchmarks.settings import Settings
from benchmarks.workloads import Batch, collate, random_ids

LENGTHS = (12, 60, 128, 384)
# A peer's threads may spin for a while after its last call: each takes a block of calls, and its first do not count.
_BLOCK, _DROPPED = 20, 3
_AT_LEAST = 100


def run(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row per length and peer."""
    model = base_model(settings)
    contenders, others = ready(settings, model)
    yield from others
    for name, batch in _batches(settings, model):
        calls: dict[str, Callable[[], object]] = {c.name: _call(settings, c.encode, batch) for c in contenders}
        if settings.context.on_gpu:
            for c in contenders:
                graphed = _graphed(settings, c.encode, batch)
                if callable(graphed):
                    calls[f"{c.name}, CUDA graph"] = graphed
                else:
                    yield {"peer": f"{c.name}, CUDA graph", "workload": name, "not run": graphed}
        versions = {c.name: c.version for c in contenders}
        for peer_name, seconds in percentiles(calls, settings.seconds).items():
            row = {"workload": name, "peer": peer_name, "version": versions.get(peer_name), "dtype": settings.dtype}
            yield row | {"model": settings.model_name, "tokens": batch.tokens} | summary(seconds)


def summary(seconds: list[float]) -> dict[str, Any]:
    """Percentiles in milliseconds."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {f"p{q}_ms": 1e3 * ordered[round(q / 100 * last)] for q in (50, 90, 99)} | {"calls": len(ordered)}


def percentiles(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, in blocks that take turns, for about ``seconds`` and till each was called enough."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    began = time.perf_counter()
    while True:
        for name, call in calls.items():
            for index in range(_BLOCK):
                start = time.perf_counter()
                call()
                if index >= _DROPPED:
                    found[name].append(time.perf_counter() - start)
        passed = time.perf_counter() - began
        enough = min(map(len, found.values()), default=_AT_LEAST) >= _AT_LEAST
        if passed > 3 * seconds or (passed > seconds and enough):
            return found


def _batches(settings: Settings, model: torch.nn.Module) -> Iterator[tuple[str, Batch]]:
    for length in LENGTHS:
        if length <= model.config.max_position_embeddings and settings.wanted(name := f"1 x {length}"):
            ids = random_ids([length], model.config.vocab_size, seed=length)
            yield name, settings.to_device(collate(ids))


def _call(settings: Settings, encode: Callable[[Batch], object], batch: Batch) -> Callable[[], object]:
    if not settings.context.on_gpu:
        return lambda: encode(batch)

    def call() -> None:
        encode(batch)
        torch.cuda.synchronize()

    return call


def _graphed(settings: Settings, encode: Callable[[Batch], Any], batch: Batch) -> Callable[[], object] | str:
    """The call as a CUDA graph, or why it cannot be one."""
    if waits := host_syncs(lambda: encode(batch)):
        return f"waits for the GPU in {waits} places, which no graph can"
    try:
        replay, out = capture(lambda: encode(batch))
        expected = encode(batch).clone()
        out.fill_(float("nan"))
        replay()
        torch.cuda.synchronize()
        if not torch.allclose(out, expected, atol=0.05 * float(expected.abs().max()), rtol=0):
            return "the replay gives other numbers than the call"
    except Exception as error:  # noqa: BLE001 - what cannot be captured is a result
        return f"{type(error).__name__}: {error}"[:300]

    def call() -> None:
        replay()
        torch.cuda.synchronize()

    return call


def ours(settings: Settings) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ten calls of ours at each length."""
    model = base_model(settings)
    ((contender,), _) = ready(settings, model, ("ours",))
    assert contender.name == peer("ours").NAME
    for name, batch in _batches(settings, model):
        call = _call(settings, contender.encode, batch)
        yield name, lambda call=call: [call() for _ in range(10)]
