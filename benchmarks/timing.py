"""Clocks. On a GPU: events, a cold cache, rotating inputs, and a queue filled while the GPU sleeps.

The sleep is what makes a kernel's time its own: without it a GPU that waits for Python between two launches counts the
wait. A clock says so when the host could not keep ahead all the same.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks import rounds

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds: the median and the 20th and 80th percentile of ``runs`` runs."""

    seconds: float
    p20: float
    p80: float
    runs: int
    host_bound: bool = False  # the GPU may have waited for the host within a run
    samples: tuple[float, ...] = ()

    @classmethod
    def of(cls, samples: Sequence[float], host_bound: bool = False) -> Timing:
        ordered = sorted(samples)
        last = len(ordered) - 1
        p20, p80 = (ordered[round(share * last)] for share in (0.2, 0.8))
        return cls(statistics.median(ordered), p20, p80, len(ordered), host_bound, tuple(samples))


class CpuClock:
    """Wall time, for a rehearsal: short, and no measurement."""

    name = "wall clock"
    interleaves = False

    def cold(self, runs: Sequence[Run], seconds: float = 0.0, calls: int = 1) -> Timing:
        """As :meth:`CudaClock.cold`."""
        return self.steady(runs[0], seconds)

    def steady(self, run: Run, seconds: float = 0.0) -> Timing:
        """As :meth:`CudaClock.steady`."""
        began = time.perf_counter()
        run()
        return Timing.of([time.perf_counter() - began])

    latency = steady


class WallClock:
    """Wall time on the CPU: contenders take turns, and each takes its sets of inputs in turn."""

    name = "wall clock, interleaved"
    interleaves = True
    _ROUNDS = 100

    def race(
        self, contenders: dict[str, Sequence[Run]], seconds: float = 2.0, *, warmup: int = 3, at_least: int = 5
    ) -> dict[str, Timing]:
        """Times of the contenders over common rounds, about ``seconds`` for all of them together."""
        turns = {name: _in_turn(runs) for name, runs in contenders.items()}
        found = rounds.samples(turns, self._ROUNDS, warmup=warmup, budget=seconds, at_least=at_least)
        return {name: Timing.of(samples) for name, samples in found.items()}

    def cold(self, runs: Sequence[Run], seconds: float = 0.5, calls: int = 1) -> Timing:
        """As :meth:`CudaClock.cold`, without a way to empty the caches: other inputs than the last call's."""
        return self.race({"": runs}, seconds)[""]

    def steady(self, run: Run, seconds: float = 1.0) -> Timing:
        """As :meth:`CudaClock.steady`."""
        return self.cold([run], seconds)

    latency = steady


def _in_turn(runs: Sequence[Run]) -> Run:
    cycle = itertools.cycle(runs)
    return lambda: next(cycle)()


class CudaClock:
    """CUDA events on the current stream."""

    name = "CUDA events"
    interleaves = False
    _SLEEP_HZ = 2e9  # cycles a second of the sleeping kernel; a slower clock only sleeps longer
    _QUEUE = 16  # runs waiting behind one sleep, so that the driver's queue of launches does not fill

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        cache = int(getattr(properties, "L2_cache_size", 0)) or 50 * 2**20
        self._flush = torch.empty(4 * cache, dtype=torch.int8, device="cuda")
        self._sleep = getattr(torch.cuda, "_sleep", None)

    def cold(self, runs: Sequence[Run], seconds: float = 0.2, calls: int = 1) -> Timing:
        """GPU time of one run that finds nothing in cache.

        Args:
            runs: the same work over different inputs, taken in turn.
            seconds: about how much GPU time to spend.
            calls: kernels a run launches, roughly, if many; fewer runs are then queued at once.
        """
        host, device = self._warm_up(runs)
        flush = max(_elapsed(self._flush.zero_), 1e-6)
        count = int(min(100, max(10, seconds / (device + flush))))
        queue = max(1, min(self._QUEUE, 400 // max(calls, 1)))
        samples: list[float] = []
        late = queues = 0
        while len(samples) < count:
            events = [_pair() for _ in range(min(queue, count - len(samples)))]
            awake = self._sleep_for(1.5 * len(events) * host + 1e-3)
            began = time.perf_counter()
            for index, (start, end) in enumerate(events):
                self._flush.zero_()
                start.record()
                runs[(len(samples) + index) % len(runs)]()
                end.record()
            host = max(host, (time.perf_counter() - began) / len(events))
            late += awake is None or awake.query()
            queues += 1
            torch.cuda.synchronize()
            samples += [start.elapsed_time(end) / 1e3 for start, end in events]
        return Timing.of(samples, host_bound=late > queues // 4)

    def steady(self, run: Run, seconds: float = 1.0) -> Timing:
        """Time of one run among many that follow each other, as in a loop over batches; waits of the host count."""
        _, device = self._warm_up([run])
        length = int(min(50, max(3, seconds / 5 / device)))
        samples = []
        for _ in range(5):
            start, end = _pair()
            start.record()
            for _ in range(length):
                run()
            end.record()
            torch.cuda.synchronize()
            samples.append(start.elapsed_time(end) / 1e3 / length)
        return Timing.of(samples)

    def latency(self, run: Run, seconds: float = 1.0) -> Timing:
        """Time on the host's clock from the call until the result is there."""
        host, device = self._warm_up([run])
        samples = []
        for _ in range(int(min(500, max(20, seconds / max(host, device))))):
            began = time.perf_counter()
            run()
            torch.cuda.synchronize()
            samples.append(time.perf_counter() - began)
        return Timing.of(samples)

    def _warm_up(self, runs: Sequence[Run]) -> tuple[float, float]:
        """Compile, load and allocate; then the seconds the host takes to queue a run, and the whole takes to end."""
        for _ in range(3):
            for run in runs:
                run()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for run in runs:
            run()
        queued = time.perf_counter() - began
        torch.cuda.synchronize()
        return queued / len(runs), (time.perf_counter() - began) / len(runs)

    def _sleep_for(self, seconds: float) -> torch.cuda.Event | None:
        """Keep the GPU busy; the event that ends it. None where PyTorch has no such kernel any more."""
        if self._sleep is None:
            return None
        self._sleep(int(min(seconds, 0.5) * self._SLEEP_HZ))
        awake = torch.cuda.Event()
        awake.record()
        return awake


def _pair() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def _elapsed(run: Run) -> float:
    start, end = _pair()
    run()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3
