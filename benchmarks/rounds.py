"""Timing on CPU: contenders take turns, so that a machine whose speed drifts treats all of them alike."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender over the rounds."""

    median: float
    best: float
    worst: float


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, Timing]:
    """Run every contender ``warmup`` times, then all of them in turn for ``rounds`` rounds."""
    seconds = samples(contenders, rounds, warmup=warmup)
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}


def samples(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    budget: float = math.inf,
    at_least: int = 3,
) -> dict[str, list[float]]:
    """Seconds of every contender, round by round: up to ``rounds``, and after ``at_least`` only within the budget.

    The order turns by one from round to round: nobody always follows the same neighbour, whose caches he would find.

    Args:
        budget: seconds for all rounds together, warm-up left out.
    """
    for run in contenders.values():
        for _ in range(warmup):
            run()
    names = list(contenders)
    found: dict[str, list[float]] = {name: [] for name in names}
    began = time.perf_counter()
    for index in range(rounds):
        passed = time.perf_counter() - began
        if index >= at_least and passed * (index + 1) / index > budget:
            break
        turn = index % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            contenders[name]()
            found[name].append(time.perf_counter() - start)
    return found
