"""Which attention kernels a call runs, with which blocks, as data: for the launchers, for explain() and for tests.

Everything follows from facts the host knows: the longest sequence's bound, head dim, item size, dropout, GPU.
"""

from __future__ import annotations

import dataclasses
import functools

import torch

from . import launch
from .common import cdiv, next_power_of_2

SMALLEST_SLOT = 16  # rows; dropout draws for 16 keys at a time
TENSOR_MEMORY = (10, 11)  # GPU generations whose matrix instructions leave their results there


@dataclasses.dataclass(frozen=True)
class KernelPlan:
    """One launch: the kernel, its block constants, Triton's options, and the resources that these should need."""

    kernel: str
    blocks: dict[str, int]
    options: dict[str, int]
    predicted: dict[str, int]

    def programs(self, tokens: int, batch: int, heads: int) -> int:
        """How many programs cover a batch: whole sequences by the group, or tiles by the bound on their number."""
        if "GROUP" in self.blocks:
            return cdiv(batch, self.blocks["GROUP"]) * heads
        return (tokens // self.blocks[_TILED[self.kernel]] + batch) * heads


@dataclasses.dataclass(frozen=True)
class Plan:
    """``name`` is group, tile or loop; the backward's kernels run in the order given."""

    name: str
    forward: KernelPlan
    backward: tuple[KernelPlan, ...]


_TILED = {
    "attention_forward_loop": "BLOCK_M",
    "attention_backward_queries": "BLOCK_M",
    "attention_backward_keys": "BLOCK_N",
}


def plan(
    max_seqlen: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    dropout: bool = False,
    masked: bool = False,
    bias: bool = False,
    capability: int | None = None,
) -> Plan:
    """The plan of a call. masked: with a bias or a key mask. capability: 90 for sm_90; by default the current GPU's."""
    capability = launch.architecture() if capability is None else capability
    block_d = max(16, next_power_of_2(head_dim))
    return _plan(max(1, max_seqlen), block_d, dtype.itemsize, dropout, masked, bias, capability)


@functools.cache
def _plan(
    max_seqlen: int, block_d: int, itemsize: int, dropout: bool, masked: bool, bias: bool, capability: int
) -> Plan:
    facts = {"d": block_d, "bytes": itemsize, "dropout": int(dropout), "masked": int(masked or bias), "bias": int(bias)}

    def kernel(name: str, blocks: dict[str, int], parameters: dict[str, int]) -> KernelPlan:
        options = {"num_stages": 1 if "GROUP" in blocks else 2, **launch.launch_options(parameters)}
        return KernelPlan(name, blocks, options, _predict(name, blocks, options, block_d, itemsize, dropout))

    def whole(name: str) -> KernelPlan | None:
        """The kernel that takes whole sequences, if the table has a tile for this length."""
        slot = max(SMALLEST_SLOT, next_power_of_2(max_seqlen))
        parameters = launch.parameters(name, capability, rows=slot, **facts)
        if slot > parameters.get("LARGEST", slot):
            return None
        rows = max(slot, parameters["ROWS"])
        blocks = {"SLOT": slot, "GROUP": rows // slot}
        if "BLOCK_N" in parameters:
            # all keys at once where sequences share a tile, and in float32, whose backward needs the sums of its rows
            blocks["BLOCK_N"] = rows if rows > slot or itemsize == 4 else min(rows, parameters["BLOCK_N"])
        return kernel(name, blocks, parameters)

    def tiled(name: str) -> KernelPlan:
        parameters = launch.parameters(name, capability, **facts)
        blocks = {"BLOCK_M": parameters["BLOCK_M"], "BLOCK_N": parameters["BLOCK_N"]}
        if name == "attention_backward_keys":
            blocks["STATS_GATHERED"] = int(capability // 10 in TENSOR_MEMORY)
        return kernel(name, blocks, parameters)

    forward = whole("attention_forward_tile") or tiled("attention_forward_loop")
    backward_tile = whole("attention_backward_tile")
    if backward_tile is not None:
        backward = (backward_tile,)
    else:
        backward = (tiled("attention_backward_queries"), tiled("attention_backward_keys"))
    name = "loop" if "GROUP" not in forward.blocks else "tile" if forward.blocks["GROUP"] == 1 else "group"
    return Plan(name, forward, backward)


def _predict(
    kernel: str, blocks: dict[str, int], options: dict[str, int], d: int, itemsize: int, dropout: bool
) -> dict[str, int]:
    """Bytes of shared memory and accumulator registers of a thread, from the tiles a kernel must hold at once."""
    stages = options["num_stages"]
    m = blocks["SLOT"] * blocks["GROUP"] if "GROUP" in blocks else blocks["BLOCK_M"]
    n = blocks.get("BLOCK_N", m)
    whole = "GROUP" in blocks and n == m
    columns = blocks["SLOT"] if blocks.get("GROUP", 1) > 1 else n  # of scores: each sequence of a group has its own
    if kernel.startswith("attention_forward"):
        rows = m + 2 * n * (1 if whole else stages)  # q, then k and v
        scores, outputs = m * columns, m * d
    elif kernel == "attention_backward_keys":
        rows = 2 * n + 2 * m * stages  # k and v, then q and dout
        scores, outputs = 2 * m * n, 2 * n * d
    else:
        rows = 2 * m + 2 * n * (1 if whole else stages)  # q and dout, then k and v
        scores, outputs = 2 * m * columns, m * d
    shared = rows * d * itemsize
    if kernel == "attention_backward_tile":
        shared += m * columns * itemsize  # probabilities, then their gradient, as an operand
    if kernel == "attention_backward_queries" and dropout:
        shared += m * n * 4  # what dropout kept, on its way to memory
    return {"shared_bytes": shared, "accumulators": (scores + outputs) // (32 * options["num_warps"])}
