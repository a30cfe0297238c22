"""pytest-benchmark on a GPU: its rounds are what CUDA events measured.

pytest-benchmark times calls by the host's clock, which on a GPU sees the launch and not the work. Here the project's
own clock measures first (cold cache, rotating inputs, a queue filled while the GPU sleeps), and the fixture then meets
a call that takes as long, by a clock that such a call moves. So groups, statistics, saved JSON and comparisons are
pytest-benchmark's own, over the samples of CUDA events. On a CPU the fixture simply times the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.context import Context


class Clock:
    """Seconds, as a function without arguments: the host's, until samples are replayed."""

    def __init__(self) -> None:
        self._now: float | None = None

    def __call__(self) -> float:
        return time.perf_counter() if self._now is None else self._now

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass; from the first time on, no other time does."""
        self._now = (self._now or 0.0) + seconds

    def reset(self) -> None:
        """The host's again."""
        self._now = None


CLOCK = Clock()  # the timer of all benchmarks, as the marker ``benchmark(timer=CLOCK)`` gives it


def benchmarked(benchmark: Any, here: Context, runs: Sequence[Callable[[], object]], how: str = "cold") -> None:
    """Have the fixture measure ``runs``, the same work over different inputs, taken in turn.

    Args:
        how: on a GPU, which of its clock's times: "cold" (one kernel), "steady" (a loop) or "latency" (to the answer);
            the last two of the first run alone.
    """
    CLOCK.reset()
    turn = _in_turn(runs)
    if not here.on_gpu or benchmark.disabled:
        benchmark(lambda: next(turn)())
        return
    measured = (here.clock.cold(runs) if how == "cold" else getattr(here.clock, how)(runs[0])).samples
    samples = iter(measured)
    CLOCK.advance(0.0)
    try:
        benchmark.pedantic(lambda: CLOCK.advance(next(samples, 0.0)), rounds=len(measured), iterations=1)
    finally:
        CLOCK.reset()


def _in_turn(runs: Sequence[Callable[[], object]]) -> Iterator[Callable[[], object]]:
    while True:
        yield from runs
