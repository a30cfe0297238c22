"""The search itself: candidates one after another, the best kept if it is right, and only if it wins twice."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.tuning.bench import Lost
from benchmarks.tuning.grid import Search
from benchmarks.tuning.table import Rule

Workload = tuple[str, str]
_WORTH = 0.98  # a candidate must take at most this share of the time to be adopted
_SWEEPS = 3


class Measures(Protocol):
    """What a search needs of a bench; see :class:`benchmarks.tuning.bench.Bench`."""

    def rules(self, kernel: str) -> list[Rule]: ...
    def installed(self, kernel: str, rules: list[Rule]) -> Any: ...
    def rules_used(self, workload: Workload, kernel: str) -> set[int]: ...
    def seconds(self, workload: Workload) -> float: ...
    def right(self, workload: Workload) -> bool: ...


@dataclass
class Outcome:
    """One rule of one kernel: what it was, what it becomes, its time as a share of before, and all that was tried."""

    kernel: str
    limits: dict[str, int]
    before: dict[str, int]
    after: dict[str, int]
    share: float = 1.0
    tried: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    @property
    def changed(self) -> bool:
        return self.after != self.before


def tune(kernel: str, search: Search, bench: Measures, say: Callable[[str], None]) -> list[Outcome]:
    """Try the kernel's candidates, rule by rule; the bench's table is left as it was.

    Raises:
        Lost: a candidate took the GPU with it; ``outcomes`` of the error holds what was found before.
    """
    rules = bench.rules(kernel)
    outcomes: list[Outcome] = []
    for index, (limits, current) in enumerate(rules):
        outcome = Outcome(kernel, limits, dict(current), dict(current))
        outcomes.append(outcome)
        work = [w for w in search.workloads if index in bench.rules_used(w, kernel)]
        if not work:
            outcome.note = "no workload falls under this rule"
            continue
        try:
            _improve(kernel, rules, index, search, work, bench, outcome)
        except Lost as error:
            outcome.after, outcome.note = dict(current), f"the GPU was lost: {error}"
            error.outcomes = outcomes  # type: ignore[attr-defined]
            raise
        rules[index] = (limits, outcome.after)
        say(f"{kernel} {limits}: {outcome.before} -> {outcome.after}, {outcome.share:.3f} of the time")
    return outcomes


def _improve(
    kernel: str, rules: list[Rule], index: int, search: Search, work: list[Workload], bench: Measures, outcome: Outcome
) -> None:
    base = _times(kernel, rules, work, bench)
    seen = {_key(outcome.before)}
    best = 1.0
    for _ in range(_SWEEPS):
        found = outcome.after
        for candidate in list(search.candidates(outcome.after)):
            if _key(candidate) in seen:
                continue
            seen.add(_key(candidate))
            changed = _with(rules, index, candidate)
            try:
                share = _share(_times(kernel, changed, work, bench), base)
                right = share >= best * _WORTH or _right(kernel, changed, work, bench)
            except Lost:
                raise
            except Exception as error:  # noqa: BLE001 - a candidate that does not compile or fit is out
                outcome.tried.append(candidate | {"error": f"{type(error).__name__}: {error}"[:300]})
                continue
            outcome.tried.append(candidate | {"share": share} | ({} if right else {"wrong": True}))
            if right and share < best * _WORTH:
                best, found = share, candidate
        if found == outcome.after:
            break
        outcome.after = found
    if not outcome.changed:
        return
    # Once more, one after the other: the winner of many noisy races is partly lucky.
    again = _times(kernel, rules, work, bench)
    outcome.share = _share(_times(kernel, _with(rules, index, outcome.after), work, bench), again)
    if outcome.share > _WORTH:
        outcome.after, outcome.note = dict(outcome.before), f"{outcome.after} won once and not again"


def _times(kernel: str, rules: list[Rule], work: list[Workload], bench: Measures) -> list[float]:
    with bench.installed(kernel, rules):
        return [bench.seconds(workload) for workload in work]


def _right(kernel: str, rules: list[Rule], work: list[Workload], bench: Measures) -> bool:
    with bench.installed(kernel, rules):
        return all(bench.right(workload) for workload in work)


def _share(times: list[float], base: list[float]) -> float:
    """The geometric mean of the ratios: every workload counts alike, however long it runs."""
    return math.exp(sum(math.log(a / b) for a, b in zip(times, base, strict=True)) / len(base))


def _with(rules: list[Rule], index: int, candidate: dict[str, int]) -> list[Rule]:
    changed = copy.deepcopy(rules)
    changed[index] = (rules[index][0], dict(candidate))
    return changed


def _key(candidate: dict[str, int]) -> tuple:
    return tuple(sorted(candidate.items()))
