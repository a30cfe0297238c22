"""One op beside its peers: every provider right first, by the numeric contract, and timed only then."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.context import Context
from benchmarks.contract import poisoned, results, truth_of, worst
from benchmarks.counting import host_syncs
from benchmarks.graphs import capture
from benchmarks.specs.spec import Provider, Spec, Tensors
from benchmarks.timing import Timing

SETS = 2  # of inputs, taken in turn
_LAUNCH_BOUND = 60e-6  # seconds: what is faster is also timed as a CUDA graph's replay


def measure(spec: Spec, here: Context, *, graphs: bool = False) -> Iterator[dict[str, Any]]:
    """Check every provider of ``spec``, then time those that are right; a row for each, direction by direction.

    On a GPU one provider is timed after the other, so that their memory is free again; on CPU they take turns.

    Args:
        graphs: on a GPU, time what is bound by its launch also as the replay of a CUDA graph.

    Raises:
        RuntimeError: at the end, when ours (the first provider) could not run or was wrong.
    """
    checked = spec.make(here.sizes.checked, 1)
    ours = spec.providers[0].name
    problems: list[str] = []
    right: dict[str, dict[str, Any]] = {}
    for provider in spec.providers:
        row = {"op": spec.op, "provider": provider.name} | verdict(spec, provider, checked, here)
        if row.get("right") is True:
            right[provider.name] = row
            continue
        problems += [f"{provider.name} is not right: {row.get('error', row)}"] if provider.name == ours else []
        yield row
    del checked
    inputs = [spec.make(here.sizes.tokens, 2 + i) for i in range(SETS)]
    costs = spec.costs(inputs[0])
    for direction in spec.directions:
        cost = costs[direction]
        contenders = {provider.name: provider for provider in spec.providers if provider.name in right}
        for name, found in _timed(spec, contenders, direction, inputs, here, graphs):
            if "error" in found and name == ours:
                problems.append(f"{name}, {direction}: {found['error']}")
            yield right[name] | {"direction": direction, "bytes": cost.bytes, "flops": cost.flops} | found
    if problems:
        raise RuntimeError("\n".join(problems))


def verdict(spec: Spec, provider: Provider, checked: Tensors, here: Context) -> dict[str, Any]:
    """Why the provider cannot run ("not run"), or whether it is ``right``, or the ``error`` that it met instead."""
    if provider.missing:
        return {"not run": provider.missing}
    try:
        return check(spec, provider, checked, here)
    except Exception as error:  # noqa: BLE001 - a peer that cannot run is a result
        return {"right": None} | _failure(error)


def once(spec: Spec, here: Context) -> None:
    """Run ours and torch.compile once, checked and timed sizes, in every direction: for what they compile."""
    checked, inputs = (spec.make(tokens, 1) for tokens in (here.sizes.checked, here.sizes.tokens))
    for provider in spec.providers:
        if provider.name in ("bert_fast", "torch.compile"):
            check(spec, provider, checked, here)
            for direction in spec.directions:
                closure(spec, provider, direction, inputs, here)()


def _failure(error: Exception) -> dict[str, str]:
    return {"error": "".join(traceback.format_exception(error))[-4000:]}


def check(spec: Spec, provider: Provider, inputs: Tensors, here: Context) -> dict[str, Any]:
    """Whether the provider's output and gradients hold the contract: ``right``, ``error_ratio`` and where it is worst.

    A provider that draws its own dropout is checked without.
    """
    p = spec.p if provider.masks else 0.0
    if spec.exact:
        right = torch.equal(provider.run(inputs, p), spec.truth(inputs, p))
        return {"right": right, "error_ratio": 0.0 if right else None}
    upstream = None
    if spec.leaves:
        with torch.no_grad():
            shape = spec.truth(inputs, p).shape
        upstream = torch.randn(shape, generator=here.generator(7), device=here.device).to(here.dtype)
    truth = truth_of(lambda t: spec.truth(t, p), inputs, spec.leaves, upstream)
    eager = results(lambda t: spec.truth(t, p), inputs, spec.leaves, upstream)
    if provider.name == spec.providers[0].name:
        with poisoned():
            found = results(lambda t: provider.run(t, p), inputs, spec.leaves, upstream)
    else:
        found = results(lambda t: provider.run(t, p), inputs, spec.leaves, upstream)
    ratio, where = worst(found, eager, truth, here.dtype, spec.terms)
    return {"right": bool(ratio <= 1), "error_ratio": ratio, "worst": where, "checked_with_dropout": p}


def runs_of(
    spec: Spec, provider: Provider, direction: str, inputs: list[Tensors], here: Context
) -> list[Callable[[], Any]]:
    """A call for each set of inputs; of a forward also that its full-size output is finite.

    Raises:
        ArithmeticError: it is not.
    """
    runs = [closure(spec, provider, direction, given, here) for given in inputs]
    if direction in ("forward", "training"):
        out = runs[0]()
        if out.is_floating_point() and not torch.isfinite(out).all():
            raise ArithmeticError(f"{provider.name} gives numbers that are not finite at {here.sizes.tokens} tokens")
    return runs


def _timed(
    spec: Spec, contenders: dict[str, Provider], direction: str, inputs: list[Tensors], here: Context, graphs: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """By name, what a provider's timing came to, or the error it met."""
    racing: dict[str, list[Callable[[], Any]]] = {}
    for name, provider in contenders.items():
        try:
            runs = runs_of(spec, provider, direction, inputs, here)
            if here.clock.interleaves:
                racing[name] = runs
                continue
            found = row_of(here.clock.cold(runs))
            peak = here.peak_memory(runs[0])
            found |= {} if peak is None else {"peak_mib": peak / 2**20}
            if graphs and direction == "forward" and found["us"] < _LAUNCH_BOUND * 1e6:
                found |= _replayed(runs, here)
            yield name, found
        except Exception as error:  # noqa: BLE001 - as in verdict
            yield name, _failure(error)
    if racing:
        peaks = {name: here.peak_memory(runs[0]) for name, runs in racing.items()}
        for name, timing in here.clock.race(racing).items():
            peak = peaks[name]
            yield name, row_of(timing) | ({} if peak is None else {"peak_mib": peak / 2**20})


def row_of(timing: Timing) -> dict[str, Any]:
    """A timing as a row holds it, in microseconds."""
    return {
        "us": timing.seconds * 1e6, "p20": timing.p20 * 1e6, "p80": timing.p80 * 1e6, "runs": timing.runs,
        "host_bound": timing.host_bound,
    }  # fmt: skip


def _replayed(runs: list[Callable[[], Any]], here: Context) -> dict[str, Any]:
    """GPU time of the same work launched by a CUDA graph, or why there is none."""
    if waits := host_syncs(runs[0]):
        return {"graph_error": f"waits for the GPU in {waits} places, which no graph can"}
    try:
        replays = [capture(run)[0] for run in runs]
        return {"graph_us": here.clock.cold(replays).seconds * 1e6}
    except Exception as error:  # noqa: BLE001 - what cannot be captured is a result
        return {"graph_error": f"{type(error).__name__}: {error}"[:500]}


def closure(spec: Spec, provider: Provider, direction: str, given: Tensors, here: Context):
    leaves = dict(given)
    if direction == "forward":

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return provider.run(given, spec.p)

        return forward
    for name in spec.leaves:
        leaves[name] = given[name].detach().requires_grad_()
    wanted = [leaves[name] for name in spec.leaves]
    if direction == "training":
        return lambda: provider.run(leaves, spec.p)
    upstream = None

    def step() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(provider.run(leaves, spec.p), wanted, upstream)

    if direction == "step":
        return step
    out = provider.run(leaves, spec.p)
    upstream = torch.randn(out.shape, generator=here.generator(9), device=here.device).to(out.dtype)
    return lambda: torch.autograd.grad(out, wanted, upstream, retain_graph=True)
