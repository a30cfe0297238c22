"""What this machine can do at all, measured in the same run: a large copy, large products, those of a BERT layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.context import Context
from benchmarks.measure import SETS
from bert_fast.ops.linear import pack_linear

# The products of an encoder layer, [T, in] x [in, out], of BERT-base and BERT-large.
_PRODUCTS = {
    "base": ((768, 2304), (768, 768), (768, 3072), (3072, 768)),
    "large": ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)),
}


def roofs(here: Context) -> Iterator[dict[str, Any]]:
    """What this machine can do at all: a large copy, a large product, and the products of a BERT layer."""
    size, n, rows = here.sizes.roofs
    copies = []
    for _ in range(SETS):
        source = torch.randn(size, generator=here.generator(0), device=here.device).to(here.dtype)
        copies.append((torch.empty_like(source), source))
    timing = here.clock.cold([lambda to=to, source=source: to.copy_(source) for to, source in copies])
    moved = 2 * copies[0][1].nbytes
    yield {"roof": "copy", "bytes": moved, "us": timing.seconds * 1e6, "bytes_per_s": moved / timing.seconds}
    del copies
    yield {"roof": "matmul", **_product(here, n, n, n)}
    if here.device.type == "cpu":
        yield {"roof": "matmul packed", **_product(here, n, n, n, packed=True)}
    for model, shapes in _PRODUCTS.items():
        for k, m in shapes:
            yield {"roof": f"{model} {k}x{m}", **_product(here, rows, *((32, 32) if here.small else (k, m)))}


def _product(here: Context, tokens: int, k: int, m: int, packed: bool = False) -> dict[str, Any]:
    """Random data: zeros would run faster. ``packed``: with a weight that oneDNN has laid out for itself."""
    pairs = []
    for seed in range(SETS):
        x = torch.randn(tokens, k, generator=here.generator(seed), device=here.device).to(here.dtype)
        pairs.append((x, torch.randn(m, k, generator=here.generator(seed + 50), device=here.device).to(here.dtype)))
    if packed:
        ready = [(x, pack_linear(w, None, here.dtype)) for x, w in pairs]
        runs = [lambda x=x, w=w: w(x) for x, w in ready]
    else:
        runs = [lambda x=x, w=w: torch.nn.functional.linear(x, w) for x, w in pairs]
    timing = here.clock.cold(runs)
    flops = 2 * tokens * k * m
    return {"flops": flops, "us": timing.seconds * 1e6, "flops_per_s": flops / timing.seconds}


@dataclass(frozen=True)
class Roof:
    """The best that this machine was seen to do, in the same run: bytes and operations a second."""

    bytes_per_s: float
    flops_per_s: float

    @classmethod
    def of(cls, rows: Iterable[dict[str, Any]]) -> Roof:
        """From the rows of :func:`roofs`: the copy, and the fastest of all products."""
        found = list(rows)
        return cls(
            next(row["bytes_per_s"] for row in found if row["roof"] == "copy"),
            max(row["flops_per_s"] for row in found if "flops_per_s" in row),
        )

    def floor(self, bytes: int, flops: int) -> float:
        """Seconds under which work that moves ``bytes`` and computes ``flops`` cannot go."""
        return max(bytes / self.bytes_per_s, flops / self.flops_per_s)


def rates(row: dict[str, Any], roof: Roof) -> dict[str, Any]:
    """What follows from a row's time: GB/s, TFLOP/s, the share of what the roof allows, and which roof that is."""
    seconds = row["us"] / 1e6
    floor = roof.floor(row["bytes"], row["flops"])
    bound = "memory" if floor == row["bytes"] / roof.bytes_per_s else "compute"
    found = {"gb_per_s": row["bytes"] / seconds / 1e9, "of_roof": floor / seconds, "bound": bound}
    return found | ({"tflop_per_s": row["flops"] / seconds / 1e12} if row["flops"] else {})
