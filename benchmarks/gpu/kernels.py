"""Every op, forward and backward, beside its peers, with the roofs of this very machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.context import context
from benchmarks.gpu.ahead import ahead
from benchmarks.measure import measure
from benchmarks.options import Options
from benchmarks.roofs import roofs
from benchmarks.specs import spec_named


def run(name: str, options: Options) -> Iterator[dict[str, Any]]:
    """"ahead" (compiles everything, in many processes), "roofs", or an op: a row per provider and direction."""
    here = context(options)
    here.forget_compiled()
    if name == "ahead":
        yield from ahead(options)
    elif name == "roofs":
        yield from roofs(here)
    else:
        yield from measure(spec_named(name, here), here)
