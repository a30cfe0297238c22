"""Running a workload under given launch parameters: is it right, how long does it take, which rules does it use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.context import Context
from benchmarks.measure import check, closure
from benchmarks.options import Options
from benchmarks.specs import spec_named
from benchmarks.specs.spec import Spec, Tensors
from benchmarks.tuning.table import Rule
from bert_fast import backend
from bert_fast.kernels import attention_plan, launch

Workload = tuple[str, str]


class Lost(RuntimeError):
    """The GPU no longer answers this process: nothing more can be tried."""


@dataclass
class _Work:
    """One workload's calls; those of full size are made when they are first timed."""

    spec: Spec
    direction: str
    here: Context

    @functools.cached_property
    def checked(self) -> Tensors:
        return self.spec.make(self.here.sizes.checked, 1)

    @functools.cached_property
    def small(self) -> Callable[[], object]:
        return self._closure(self.checked)

    @functools.cached_property
    def runs(self) -> list[Callable[[], object]]:
        return [self._closure(self.spec.make(self.here.sizes.tokens, 2 + i)) for i in range(2)]

    def _closure(self, given: Tensors) -> Callable[[], object]:
        return closure(self.spec, self.spec.providers[0], self.direction, given, self.here)


class Bench:
    """Workloads over the kernels as a user meets them, through the ops."""

    def __init__(self, options: Options) -> None:
        self._here = Context(options)
        self._here.backend = "triton"  # a kernel that does not compile must fail, not fall back
        self.capability = launch.architecture()

    def rules(self, kernel: str) -> list[Rule]:
        """The rules that this GPU uses now: its own, those of the chip nearest to it, or the default."""
        entry, nearest = launch.TABLE[kernel], launch.NEAREST.get(self.capability, 0)
        found = entry.get(self.capability) or entry.get(nearest) or entry[0]
        return [(dict(limits), dict(chosen)) for limits, chosen in found]

    @contextmanager
    def installed(self, kernel: str, rules: list[Rule]) -> Iterator[None]:
        """Within the block the kernel's launches follow ``rules``."""
        entry = launch.TABLE[kernel]
        before = entry.get(self.capability)
        entry[self.capability] = rules
        _forget()
        try:
            yield
        finally:
            if before is None:
                del entry[self.capability]
            else:
                entry[self.capability] = before
            _forget()

    def rules_used(self, workload: Workload, kernel: str) -> set[int]:
        """Which of the kernel's rules the workload's launches fall under."""
        facts: list[dict[str, int]] = []
        ask = launch.parameters

        def asked(name: str, capability: int, **given: int) -> dict[str, int]:
            if name == kernel:
                facts.append(given)
            return ask(name, capability, **given)

        _forget()
        launch.parameters = asked
        try:
            self._work(workload).small()
        finally:
            launch.parameters = ask
        rules = self.rules(kernel)
        matches = (
            next(i for i, (limits, _) in enumerate(rules) if all(given[n] <= most for n, most in limits.items()))
            for given in facts
        )
        return set(matches)

    def seconds(self, workload: Workload) -> float:
        """GPU time of one run, inputs cold."""
        return self._guarded(lambda: self._here.clock.cold(self._work(workload).runs, seconds=0.1).seconds)

    def right(self, workload: Workload) -> bool:
        """Whether the results hold the numeric contract."""
        work = self._work(workload)
        return bool(self._guarded(lambda: check(work.spec, work.spec.providers[0], work.checked, self._here)["right"]))

    def compile(self, workload: Workload) -> None:
        """Launch it once, small: the compiled kernels stay on disk for whoever launches it next."""
        self._guarded(self._work(workload).small)

    def _guarded(self, call: Callable) -> object:
        try:
            return call()
        except Exception:
            if self._here.device.type == "cuda":
                try:
                    torch.cuda.synchronize()
                except Exception as error:
                    raise Lost(str(error)) from error
            raise
        finally:
            backend._broken.clear()  # what one candidate broke, the next one may run

    @functools.lru_cache(maxsize=8)  # noqa: B019 - one bench a process; as many as one kernel has workloads
    def _work(self, workload: Workload) -> _Work:
        name, direction = workload
        return _Work(spec_named(name, self._here), direction, self._here)


def _forget() -> None:
    """What launchers remember of the table."""
    launch._lookup.cache_clear()
    attention_plan._plan.cache_clear()
