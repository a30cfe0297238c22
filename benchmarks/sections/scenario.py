"""Offline and server, after MLPerf's inference scenarios, over SQuAD-like lengths: samples a second.

Offline: all queries are there; whoever encodes them may sort. Server: queries arrive by a Poisson process, one server
takes what has arrived (up to a batch) whenever it is free, and 99 of 100 queries must be answered within the bound. The
arrivals' clock is virtual: a batch takes as long as it really took, waiting for arrivals takes no time. That a run is
no submission goes without saying: random weights, no accuracy run, minutes in place of MLPerf's hours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.sections.encoders import Contender, base_model, ready
from benchmarks.settings import Settings
from benchmarks.shapes import flops
from benchmarks.workloads import batches, collate, random_ids, squad_lengths

_LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)  # shares of a peer's own offline rate
_QUERIES = {"cpu": 96, "cuda": 4096}


def run(settings: Settings) -> Iterator[dict[str, Any]]:
    """Offline a row per peer; server a row per peer and load, then one with the most it can take within the bound."""
    model = base_model(settings)
    contenders, others = ready(settings, model)
    yield from others
    ids = _queries(settings, model)
    rates: dict[str, float] = {}
    for row in _offline(settings, model, ids, contenders):
        rates[row["peer"]] = row["samples_per_s"]
        yield row
    for contender in contenders:
        yield from _server(settings, ids, contender, rates[contender.name])


def _queries(settings: Settings, model: torch.nn.Module) -> list[list[int]]:
    count = settings.sequences or (8 if settings.tiny else _QUERIES[settings.device])
    longest = min(384, model.config.max_position_embeddings)
    return random_ids(squad_lengths(count, mean=min(175.0, longest / 2), longest=longest), model.config.vocab_size)


def _offline(
    settings: Settings, model: torch.nn.Module, ids: list[list[int]], contenders: Sequence[Contender]
) -> Iterator[dict[str, Any]]:
    given = [settings.to_device(batch) for batch in batches(ids, settings.batch_size, by_length=True)]
    runs = {c.name: lambda encode=c.encode: [encode(batch) for batch in given] for c in contenders}
    lengths = [len(row) for row in ids]
    work = flops(model.config.to_dict(), lengths)
    for name, timing in settings.compete(runs).items():
        yield _head(settings, "offline", name) | {
            "samples": len(ids), "samples_per_s": len(ids) / timing.seconds, "mean_tokens": sum(lengths) / len(ids),
            "flops_per_s": work / timing.seconds, "s": timing.seconds, "p20": timing.p20, "p80": timing.p80,
        }  # fmt: skip


def _head(settings: Settings, scenario: str, name: str) -> dict[str, Any]:
    return {"scenario": scenario, "peer": name, "model": settings.model_name, "dtype": settings.dtype}


def _server(
    settings: Settings, ids: list[list[int]], contender: Contender, offline: float
) -> Iterator[dict[str, Any]]:
    answer = _answering(settings, contender)
    answer(ids[: settings.batch_size])
    best: float | None = None
    for load in _LOADS:
        rate = load * offline
        waits = served(ids, arrivals(len(ids), rate, seed=1), settings.batch_size, answer)
        ordered = sorted(waits)
        p99 = 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        held = p99 <= settings.bound_ms
        best = rate if held else best
        yield _head(settings, "server", contender.name) | {
            "load": load, "samples_per_s": rate, "p50_ms": 1e3 * ordered[len(ordered) // 2], "p99_ms": p99,
            "bound_ms": settings.bound_ms, "held": held, "samples": len(ids),
        }  # fmt: skip
        if not held:
            break
    yield _head(settings, "server, most within the bound", contender.name) | {
        "samples_per_s": best or 0.0, "bound_ms": settings.bound_ms,
    }  # fmt: skip


def _answering(settings: Settings, contender: Contender) -> Callable[[list[list[int]]], float]:
    """Encode some queries as they came: seconds, collating and moving them included."""

    def answer(rows: list[list[int]]) -> float:
        began = time.perf_counter()
        contender.encode(settings.to_device(collate(rows)))
        if settings.context.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return answer


def arrivals(count: int, rate: float, *, seed: int) -> list[float]:
    """Seconds at which ``count`` queries of a Poisson process with ``rate`` a second arrive."""
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (-torch.log1p(-uniform) / rate).cumsum(0).tolist()


def served(
    ids: Sequence[list[int]], times: Sequence[float], most: int, answer: Callable[[list[list[int]]], float]
) -> list[float]:
    """Seconds from a query's arrival to its answer: one server, batches of what waits, first come first served."""
    now, done, waits = 0.0, 0, []
    while done < len(ids):
        now = max(now, times[done])
        end = done
        while end < len(ids) and end - done < most and times[end] <= now:
            end += 1
        now += answer(list(ids[done:end]))
        waits += [now - arrived for arrived in times[done:end]]
        done = end
    return waits


def ours(settings: Settings) -> Iterator[tuple[str, Callable[[], object]]]:
    """The offline scenario of ours."""
    model = base_model(settings)
    ((contender,), _) = ready(settings, model, ("ours",))
    given = [
        settings.to_device(batch) for batch in batches(_queries(settings, model), settings.batch_size, by_length=True)
    ]
    yield "offline", lambda: [contender.encode(batch) for batch in given]
