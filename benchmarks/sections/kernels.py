"""Every op beside its peers, with the share of this machine's roofs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from benchmarks.gpu.plan import KERNELS
from benchmarks.measure import closure, measure
from benchmarks.roofs import Roof, rates, roofs
from benchmarks.settings import Settings
from benchmarks.specs import spec_named
from benchmarks.specs.spec import Spec, with_reference

# gpu_check's, but for attention at some of its lengths.
_LEFT_OUT = {"attention S=64", "attention S=256", "attention S=32", "attention S=512 p=0.1"}
OPS = tuple(name for name in KERNELS if name not in _LEFT_OUT)
_HOST = ("attention", "unpad")  # ops that have C++ for the CPU; the others are PyTorch's there


def run(settings: Settings) -> Iterator[dict[str, Any]]:
    """The machine's roofs, then a row per op, provider and direction."""
    here = settings.context
    rows = list(roofs(here))
    yield from rows
    roof = Roof.of(rows)
    for name, spec in specs(settings):
        here.forget_compiled()
        try:
            for row in measure(spec, here, graphs=here.on_gpu):
                row |= {"item": name, "dtype": settings.dtype}
                yield row | (rates(row, roof) if "us" in row else {})
        except RuntimeError as error:
            yield {"item": name, "op": spec.op, "provider": spec.providers[0].name, "failed": str(error)[-2000:]}


def specs(settings: Settings) -> Iterator[tuple[str, Spec]]:
    """The ops that are asked for, each also on PyTorch's ops where ours has others."""
    here = settings.context
    for name in OPS:
        if settings.wanted(name):
            spec = spec_named(name, here)
            yield name, filtered(with_reference(spec, here) if here.on_gpu or spec.op in _HOST else spec, settings)


def filtered(spec: Spec, settings: Settings) -> Spec:
    """Without torch.compile where that was not asked for."""
    kept = tuple(p for p in spec.providers if settings.compile or p.name != "torch.compile")
    return replace(spec, providers=kept)


def ours(settings: Settings) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls of ours alone, by name: for one revision beside another."""
    here = settings.context
    for name in OPS:
        if not settings.wanted(name):
            continue
        spec = spec_named(name, here)
        given = spec.make(here.sizes.tokens, 2)
        for direction in spec.directions:
            yield f"{name}, {direction}", closure(spec, spec.providers[0], direction, given, here)
