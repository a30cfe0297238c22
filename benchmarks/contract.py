"""Correct first: every provider is held against float64 by the project's numeric contract before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.files import load
from benchmarks.options import ROOT

error_ratios = load(ROOT / "tests" / "numerics.py").error_ratios

Tensors = dict[str, Any]
Function = Callable[[Tensors], Tensor]


def results(function: Function, inputs: Tensors, leaves: Sequence[str], upstream: Tensor | None) -> dict[str, Tensor]:
    """``function``'s output as "out" and, for ``leaves``, the gradients of ``(out * upstream).sum()`` by name."""
    given = dict(inputs)
    for name in leaves:
        given[name] = inputs[name].detach().requires_grad_()
    with torch.set_grad_enabled(bool(leaves)):
        out = function(given)
    found = {"out": out.detach()}
    if leaves:
        gradients = torch.autograd.grad(out, [given[name] for name in leaves], upstream.to(out.dtype).view(out.shape))
        found |= dict(zip(leaves, gradients, strict=True))
    return found


def truth_of(function: Function, inputs: Tensors, leaves: Sequence[str], upstream: Tensor | None) -> dict[str, Tensor]:
    """The same in float64, of the inputs as they were rounded."""
    exact = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    return results(function, exact, leaves, None if upstream is None else upstream.double())


def worst(
    found: dict[str, Tensor], eager: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype, terms: int = 1
) -> tuple[float, str]:
    """The largest error as a share of the allowed one, and whose it is; inf where something is not finite."""
    ratios = []
    for name, expected in truth.items():
        actual = found[name].reshape(expected.shape)
        if actual.is_floating_point() and not torch.isfinite(actual).all():
            ratios.append((float("inf"), name))
            continue
        ratio = max(error_ratios(actual, eager[name].reshape(expected.shape), expected, dtype, terms))
        ratios.append((ratio, name))
    return max(ratios)


@contextmanager
def poisoned() -> Iterator[None]:
    """Within it ``torch.empty`` hands out NaN, so that what a kernel forgets to write is seen."""
    originals = {name: getattr(torch, name) for name in ("empty", "empty_like")}

    def poisoning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            out = make(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return wrapper

    for name, make in originals.items():
        setattr(torch, name, poisoning(make))
    try:
        yield
    finally:
        for name, make in originals.items():
            setattr(torch, name, make)
