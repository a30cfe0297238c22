"""Every op, forward and backward, beside its peers: right first, then timed, with the roofs of this very machine."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.ahead import ahead
from benchmarks.gpu.context import Context, context
from benchmarks.gpu.contract import poisoned, results, truth_of, worst
from benchmarks.gpu.plan import Options
from benchmarks.gpu.specs import Provider, Spec, Tensors, spec_named

_SETS = 2  # of inputs, taken in turn


def run(name: str, options: Options) -> Iterator[dict[str, Any]]:
    """"ahead" (compiles everything, in many processes), "roofs", or an op: a row per provider and direction."""
    here = context(options)
    here.forget_compiled()
    if name == "ahead":
        yield from ahead(options)
    elif name == "roofs":
        yield from _roofs(here)
    else:
        yield from measure(spec_named(name, here), here)


def measure(spec: Spec, here: Context) -> Iterator[dict[str, Any]]:
    """Check every provider of ``spec``, then time those that are right; one row for each, direction by direction.

    Raises:
        RuntimeError: at the end, when ours (the first provider) could not run or was wrong.
    """
    checked = spec.make(here.sizes.checked, 1)
    inputs = [spec.make(here.sizes.tokens, 2 + i) for i in range(_SETS)]
    costs = spec.costs(inputs[0])
    problems: list[str] = []
    for provider in spec.providers:
        ours = provider is spec.providers[0]
        row: dict[str, Any] = {"op": spec.op, "provider": provider.name}
        if provider.missing:
            yield row | {"not run": provider.missing}
            continue
        try:
            row |= check(spec, provider, checked, here)
        except Exception as error:  # noqa: BLE001 - a peer that cannot run is a result
            row |= {"right": None} | _failure(error)
        if row["right"] is not True:
            problems += [f"{provider.name} is not right: {row.get('error', row)}"] if ours else []
            yield row
            continue
        for direction, cost in costs.items():
            timed = row | {"direction": direction, "bytes": cost.bytes, "flops": cost.flops}
            try:
                timed |= _time(spec, provider, direction, inputs, here)
            except Exception as error:  # noqa: BLE001 - as above
                timed |= _failure(error)
                problems += [f"{provider.name}, {direction}: {timed['error']}"] if ours else []
            yield timed
    if problems:
        raise RuntimeError("\n".join(problems))


def once(spec: Spec, here: Context) -> None:
    """Run ours and torch.compile once, checked and timed sizes, in every direction: for what they compile."""
    checked, inputs = (spec.make(tokens, 1) for tokens in (here.sizes.checked, here.sizes.tokens))
    for provider in spec.providers:
        if provider.name in ("bert_fast", "torch.compile"):
            check(spec, provider, checked, here)
            for direction in spec.costs(inputs):
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


def _time(
    spec: Spec, provider: Provider, direction: str, inputs: list[Tensors], here: Context
) -> dict[str, Any]:
    """Timing of one direction; for the forward also that its full-size output is finite, and the memory it takes."""
    runs = [closure(spec, provider, direction, given, here) for given in inputs]
    found: dict[str, Any] = {}
    if direction in ("forward", "training"):
        out = runs[0]()
        if out.is_floating_point() and not torch.isfinite(out).all():
            raise ArithmeticError(f"{provider.name} gives numbers that are not finite at {here.sizes.tokens} tokens")
        del out
    timing = here.clock.cold(runs)
    peak = here.peak_memory(runs[0])
    found |= {"us": timing.seconds * 1e6, "p20": timing.p20 * 1e6, "p80": timing.p80 * 1e6, "runs": timing.runs}
    return found | {"host_bound": timing.host_bound} | ({} if peak is None else {"peak_mib": peak / 2**20})


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


# The products of an encoder layer, [T, in] x [in, out], of BERT-base and BERT-large.
_PRODUCTS = {
    "base": ((768, 2304), (768, 768), (768, 3072), (3072, 768)),
    "large": ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)),
}


def _roofs(here: Context) -> Iterator[dict[str, Any]]:
    """What this machine can do at all: a large copy, a large product, and the products of a BERT layer."""
    size = 2**16 if here.rehearse else 2**29
    copies = []
    for _ in range(_SETS):
        source = torch.randn(size, generator=here.generator(0), device=here.device).to(here.dtype)
        copies.append((torch.empty_like(source), source))
    timing = here.clock.cold([lambda to=to, source=source: to.copy_(source) for to, source in copies])
    moved = 2 * copies[0][1].nbytes
    yield {"roof": "copy", "bytes": moved, "us": timing.seconds * 1e6, "bytes_per_s": moved / timing.seconds}
    del copies
    n = 64 if here.rehearse else 8192
    yield {"roof": "matmul", **_product(here, n, n, n)}
    for model, shapes in _PRODUCTS.items():
        for k, m in shapes:
            tokens, k, m = (16, 32, 32) if here.rehearse else (32768, k, m)
            yield {"roof": f"{model} {k}x{m}", **_product(here, tokens, k, m)}


def _product(here: Context, tokens: int, k: int, m: int) -> dict[str, Any]:
    """Random data: zeros would run faster."""
    pairs = []
    for seed in range(_SETS):
        x = torch.randn(tokens, k, generator=here.generator(seed), device=here.device).to(here.dtype)
        pairs.append((x, torch.randn(m, k, generator=here.generator(seed + 50), device=here.device).to(here.dtype)))
    timing = here.clock.cold([lambda x=x, w=w: torch.nn.functional.linear(x, w) for x, w in pairs])
    flops = 2 * tokens * k * m
    return {"flops": flops, "us": timing.seconds * 1e6, "flops_per_s": flops / timing.seconds}
