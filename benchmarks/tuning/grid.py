"""What is tried for each kernel, and the work by which it is judged: loops first, because tiles fall back on them.

A workload is a spec of benchmarks.gpu and one of its directions. Only parameters that a rule has are varied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

_LOOP = {"BLOCK_M": (32, 64, 128), "BLOCK_N": (32, 64, 128), "num_warps": (4, 8), "num_stages": (1, 2, 3)}
_TILE = {"ROWS": (64, 128), "LARGEST": (64, 128), "BLOCK_N": (32, 64, 128), "num_warps": (4, 8)}
_LONG = ("attention S=256", "attention S=512", "attention ragged", "attention S=512 p=0.1")
_SHORT = ("attention S=32", "attention S=64", "attention S=128", "attention S=128 p=0.1")
_ROWS = ("dropout_add_layer_norm", "dropout_add_layer_norm p=0.1", "layer_norm", "gelu_layer_norm")
_ROWS_LARGE = tuple(f"{name} H=1024" for name in _ROWS[:2])
_GELU = ("bias_gelu", "bias_gelu H=1024")


@dataclass(frozen=True)
class Search:
    """A kernel's candidates and workloads: (spec's name, direction)."""

    values: dict[str, tuple[int, ...]]
    workloads: tuple[tuple[str, str], ...]

    def candidates(self, current: dict[str, int], most: int = 48) -> Iterator[dict[str, int]]:
        """Other parameters than ``current``: all combinations, or, where those are many, one value changed."""
        values = {name: options for name, options in self.values.items() if name in current}
        sizes = 1
        for options in values.values():
            sizes *= len(options)
        if sizes <= most:
            tried = (current | dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))
        else:
            tried = (current | {name: value} for name, options in values.items() for value in options)
        return (candidate for candidate in tried if candidate != current)


def _with(direction: str, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """With dropout, and for saving what the backward needs, a forward is called "training"."""
    return tuple((name, "training" if direction == "forward" and "p=" in name else direction) for name in names)


SEARCHES = {
    "attention_forward_loop": Search(_LOOP, _with("forward", _LONG)),
    "attention_forward_tile": Search(_TILE, _with("forward", _SHORT)),
    "attention_backward_queries": Search(_LOOP, _with("backward", _LONG)),
    "attention_backward_keys": Search(_LOOP, _with("backward", _LONG)),
    "attention_backward_tile": Search(_TILE, _with("backward", _SHORT)),
    "attention_backward_bias": Search(
        {"BLOCK": (32, 64), "num_warps": (4, 8), "num_stages": (1, 2)}, (("attention S=128 bias", "backward"),)
    ),
    "layer_norm_forward": Search(
        {"VALUES": (8, 12, 16, 24, 32, 48), "max_registers": (64, 80, 96, 128), "num_warps": (2, 4, 8)},
        (*_with("forward", _ROWS), *_with("forward", _ROWS_LARGE)),
    ),
    "layer_norm_backward": Search(
        {"VALUES": (8, 12, 16, 24), "num_warps": (4, 8)},
        (*_with("backward", _ROWS), *_with("backward", _ROWS_LARGE)),
    ),
    "layer_norm_backward_resident": Search(
        {"RESIDENT_WARPS": (8, 12, 16, 20, 24, 32), "max_registers": (64, 80, 96, 128, 168), "num_stages": (1, 2, 3)},
        (*_with("backward", _ROWS), *_with("backward", _ROWS_LARGE)),
    ),
    "bias_gelu_forward": Search(
        {"COLS": (256, 512, 1024, 2048), "ELEMENTS": (1024, 2048, 4096, 8192), "num_warps": (4, 8)},
        _with("forward", _GELU),
    ),
    "bias_gelu_backward": Search(
        {
            "COLS": (256, 512, 1024), "ELEMENTS": (1024, 2048, 4096, 8192), "RESIDENT": (2, 3, 4, 6, 8),
            "max_registers": (64, 96, 128, 168), "num_warps": (4, 8),
        },
        _with("backward", _GELU),
    ),
    "softmax": Search(
        {"VALUES": (4, 8, 16, 32), "num_warps": (4, 8)},
        (("scaled_masked_softmax", "forward"), ("scaled_masked_softmax", "backward")),
    ),
}  # fmt: skip
