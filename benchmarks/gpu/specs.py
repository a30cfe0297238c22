"""One spec per op: its inputs, what it must move and compute, and who can do it. Speed and correctness share it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.gpu.context import Context

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
        costs: by direction: "forward" (nothing kept), "training" (forward that keeps what its backward needs),
            "backward", "step" (forward and backward together).
        terms: of the longest sum behind an element, for float32 products.
        exact: whether the output is integers that must be equal.
    """

    op: str
    make: Callable[[int, int], Tensors]
    truth: Callable[[Tensors, float], Tensor]
    providers: tuple[Provider, ...]
    costs: Callable[[Tensors], dict[str, Cost]]
    leaves: tuple[str, ...] = ()
    p: float = 0.0
    terms: int = 1
    exact: bool = False


def missing(package: str) -> str | None:
    """Why a peer cannot be measured, or None."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def spec_named(name: str, context: Context) -> Spec:
    """The spec of an item of the plan, such as "attention S=128 p=0.1"; H=1024 widens the rows, "bias" adds to scores.

    Raises:
        KeyError: no such spec.
    """
    from benchmarks.gpu import specs_attention, specs_memory, specs_optimizer, specs_rows

    op, *rest = name.split()
    facts = dict(part.split("=") for part in rest if "=" in part)
    p = float(facts.get("p", 0))
    if "H" in facts and not context.rehearse:
        context = context.with_hidden(int(facts["H"]))
    if op == "attention":
        return specs_attention.spec(context, int(facts["S"]) if "S" in facts else None, p, bias="bias" in rest)
    if op == "pool":
        return specs_memory.pooling(context, rest[0])
    return {**specs_rows.SPECS, **specs_memory.SPECS, **specs_optimizer.SPECS}[op](context, p)
