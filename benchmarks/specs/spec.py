"""One spec per op: its inputs, what it must move and compute, and who can do it. Speed and correctness share it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from benchmarks.context import Context

Tensors = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """The fewest bytes an op must move through memory (inputs once, outputs once) and its floating-point operations."""

    bytes: int
    flops: int = 0


@dataclass(frozen=True)
class Provider:
    """One implementation: ``run(inputs, p)``, with p the dropout probability.

    ``masks`` says that it draws the dropout that the reference draws, so that it can be checked with dropout on; the
    others are checked without and timed with. ``missing`` gives the reason where it cannot run.
    """

    name: str
    run: Callable[[Tensors, float], Tensor]
    masks: bool = False
    missing: str | None = None


@dataclass(frozen=True)
class Spec:
    """An op at one size.

    Attributes:
        make: ``(tokens, seed)`` -> inputs, floating ones in the context's dtype.
        truth: the definition, in plain PyTorch: in float64 the truth, in the dtype itself what eager errs.
        leaves: the inputs that get gradients.
        costs: by direction, as ``directions`` names them.
        directions: "forward" (nothing kept), "training" (forward that keeps what its backward needs), "backward",
            "step" (forward and backward together).
        terms: of the longest sum behind an element, for float32 products.
        exact: whether the output is integers that must be equal.
    """

    op: str
    make: Callable[[int, int], Tensors]
    truth: Callable[[Tensors, float], Tensor]
    providers: tuple[Provider, ...]
    costs: Callable[[Tensors], dict[str, Cost]]
    directions: tuple[str, ...]
    leaves: tuple[str, ...] = ()
    p: float = 0.0
    terms: int = 1
    exact: bool = False


def missing(package: str, context: Context | None = None) -> str | None:
    """Why a peer cannot be measured, or None; with ``context`` for one that needs a GPU."""
    if context is not None and context.device.type != "cuda":
        return "needs a GPU"
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def with_reference(spec: Spec, context: Context) -> Spec:
    """``spec`` with one provider more: ours on PyTorch's ops, as it runs where its kernels cannot."""
    ours, *others = spec.providers

    def run(inputs: Tensors, p: float) -> Tensor:
        with context.on("reference"):
            return ours.run(inputs, p)

    return replace(spec, providers=(ours, replace(ours, name="bert_fast reference", run=run), *others))
