"""Launch parameters: a checked-in table per GPU architecture, with a default for every other one. Nothing is tuned on
a user's first call; a tuner run by hand (benchmarks/tune.py) rewrites :data:`TABLE`.

A kernel's entry maps a compute capability (0: the default, also the interpreter's) to rules, tried in order. A rule is
``(limits, parameters)`` and applies where no fact of the call exceeds its limit. The facts are the caller's to name:

    rules = {0: [({"width": 1024}, {"num_warps": 4}), ({}, {"num_warps": 8})]}

``max_registers`` caps a thread's registers (``maxnreg``) where that buys another block on the multiprocessor without
a spill; tests/kernels/test_compiled.py holds every entry to that. 255 lifts the bound that ptxas sets itself for some
chips, where it would rather spill than lose a block.
"""

from __future__ import annotations

import functools

import triton

Rules = dict[int, list[tuple[dict[str, int], dict[str, int]]]]

# Capabilities without an entry of their own use that of a chip with the same matrix instructions. 80's tiles keep to
# the 99 KiB of shared memory that 86, 89 and 120 give a block.
NEAREST = {86: 80, 87: 80, 89: 80, 103: 100, 110: 100, 120: 80, 121: 80}


# Attention's facts: d (head dim padded to a power of two), bytes of an element, dropout, masked and bias (0 or 1;
# masked is a bias or a key mask), and for the kernels of whole sequences rows, of the longest one padded to a power of
# two. Their tiles have at least ROWS rows, of several sequences if one is shorter; a longest sequence above LARGEST,
# where a rule has one, runs the tiled kernels instead, whose loops are two stages deep unless num_stages says
# otherwise. float32 dots run on the ordinary multipliers unless TF32 is allowed: small tiles. Chosen so that nothing
# spills, whichever Triton compiles it, and, among such, that enough warps stay resident: compiled, not timed, a tuner's
# first candidates.
# fmt: off
TABLE: dict[str, Rules] = {
    "attention_forward_tile": {
        0: [
            ({"bytes": 2, "rows": 16}, {"ROWS": 64, "num_warps": 4}),
            ({"bytes": 2, "rows": 32}, {"ROWS": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 64}, {"ROWS": 64, "num_warps": 4}),
            ({"bytes": 2, "rows": 128, "dropout": 0, "masked": 0}, {"ROWS": 128, "num_warps": 8}),
            ({"rows": 16, "d": 64}, {"ROWS": 32, "num_warps": 4}),
            ({"rows": 16}, {"ROWS": 16, "num_warps": 2}),
            ({"rows": 32, "d": 64}, {"ROWS": 32, "num_warps": 4}),
            ({}, {"LARGEST": 0, "ROWS": 64, "num_warps": 8}),
        ],
        80: [
            ({"bytes": 2, "rows": 16}, {"ROWS": 64, "num_warps": 4}),
            ({"bytes": 2, "rows": 32}, {"ROWS": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 64, "d": 32, "masked": 0}, {"ROWS": 64, "num_warps": 4, "max_registers": 96}),
            ({"bytes": 2, "rows": 64, "d": 64, "masked": 0}, {"ROWS": 64, "num_warps": 4, "max_registers": 128}),
            ({"bytes": 2, "rows": 64}, {"ROWS": 64, "num_warps": 4}),
            ({"rows": 16, "d": 64}, {"ROWS": 32, "num_warps": 4}),
            ({"rows": 16}, {"ROWS": 16, "num_warps": 2}),
            ({"rows": 32, "d": 64}, {"ROWS": 32, "num_warps": 4}),
            ({}, {"LARGEST": 0, "ROWS": 64, "num_warps": 8}),
        ],
        90: [
            ({"bytes": 2, "rows": 16}, {"ROWS": 64, "num_warps": 4}),
            ({"bytes": 2, "rows": 32}, {"ROWS": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 64, "d": 64, "masked": 0}, {"ROWS": 64, "num_warps": 4, "max_registers": 96}),
            ({"bytes": 2, "rows": 64, "masked": 0}, {"ROWS": 64, "num_warps": 4, "max_registers": 128}),
            ({"bytes": 2, "rows": 64}, {"ROWS": 64, "num_warps": 4}),
            ({"bytes": 2, "rows": 128, "dropout": 0, "masked": 0}, {"ROWS": 128, "num_warps": 8, "max_registers": 128}),
            ({"rows": 16, "d": 64}, {"ROWS": 32, "num_warps": 4}),
            ({"rows": 16}, {"ROWS": 16, "num_warps": 2}),
            ({"rows": 32, "d": 64}, {"ROWS": 32, "num_warps": 4}),
            ({}, {"LARGEST": 0, "ROWS": 64, "num_warps": 8}),
        ],
        100: [
            ({"bytes": 2, "rows": 16}, {"ROWS": 64, "num_warps": 4}),
            ({"bytes": 2, "rows": 32}, {"ROWS": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 64, "d": 64, "masked": 0}, {"ROWS": 64, "num_warps": 4, "max_registers": 128}),
            ({"bytes": 2, "rows": 64}, {"ROWS": 64, "num_warps": 4}),
            ({"bytes": 2, "rows": 128, "d": 64, "dropout": 0, "masked": 0},
             {"ROWS": 128, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "rows": 128, "dropout": 0, "masked": 0}, {"ROWS": 128, "num_warps": 8}),
            ({"rows": 16, "d": 64}, {"ROWS": 32, "num_warps": 4}),
            ({"rows": 16}, {"ROWS": 16, "num_warps": 2}),
            ({"rows": 32, "d": 64}, {"ROWS": 32, "num_warps": 4}),
            ({}, {"LARGEST": 0, "ROWS": 64, "num_warps": 8}),
        ],
    },
    "attention_forward_loop": {
        0: [
            ({"bytes": 2}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"d": 64}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1, "max_registers": 128}),
            ({}, {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
        80: [
            ({"bytes": 2, "d": 32, "dropout": 0, "masked": 0},
             {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 32, "bias": 0}, {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 64, "dropout": 0, "masked": 0},
             {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 64, "masked": 0}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"d": 64}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1, "max_registers": 128}),
            ({}, {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
        90: [
            ({"bytes": 2, "d": 64, "dropout": 0, "masked": 0},
             {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 32}, {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 64, "masked": 0}, {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 64, "dropout": 0}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "masked": 0}, {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"d": 64}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1, "max_registers": 128}),
            ({}, {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
        100: [
            ({"bytes": 2, "d": 64, "masked": 0}, {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 64, "bias": 0}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "max_registers": 128}),
            ({"bytes": 2, "d": 64}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8}),
            ({"bytes": 2}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"d": 64}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1, "max_registers": 128}),
            ({}, {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
    },
    "attention_backward_tile": {
        0: [
            ({"bytes": 2, "rows": 16, "d": 64}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 2}),
            ({"bytes": 2, "rows": 16}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 2}),
            ({"bytes": 2, "rows": 32}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 64}, {"ROWS": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 128}, {"ROWS": 128, "BLOCK_N": 16, "num_warps": 8}),
            ({"rows": 16, "d": 64}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"rows": 16}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 4}),
            ({"rows": 32, "d": 64}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 8}),
            ({}, {"LARGEST": 0, "ROWS": 64, "BLOCK_N": 32, "num_warps": 8}),
        ],
        80: [
            ({"bytes": 2, "rows": 16, "d": 64, "masked": 0}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 2}),
            ({"bytes": 2, "rows": 16, "d": 64}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 1}),
            ({"bytes": 2, "rows": 16}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 2}),
            ({"bytes": 2, "rows": 32}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 64, "d": 32, "dropout": 0, "masked": 0},
             {"ROWS": 64, "BLOCK_N": 64, "num_warps": 4, "max_registers": 128}),
            ({"bytes": 2, "rows": 64, "d": 32}, {"ROWS": 64, "BLOCK_N": 32, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "rows": 64, "d": 64, "masked": 0},
             {"ROWS": 64, "BLOCK_N": 32, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "rows": 64, "d": 64}, {"ROWS": 64, "BLOCK_N": 32, "num_warps": 4, "max_registers": 255}),
            ({"bytes": 2, "rows": 64}, {"ROWS": 64, "BLOCK_N": 16, "num_warps": 8}),
            ({"bytes": 2, "rows": 128, "d": 32, "dropout": 0, "masked": 0},
             {"ROWS": 128, "BLOCK_N": 64, "num_warps": 8}),
            ({"bytes": 2, "rows": 128, "d": 64, "dropout": 0, "masked": 0},
             {"ROWS": 128, "BLOCK_N": 16, "num_warps": 8}),
            ({"bytes": 2, "rows": 128, "d": 64}, {"ROWS": 128, "BLOCK_N": 32, "num_warps": 8}),
            ({"rows": 16, "d": 64}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"rows": 16}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 4}),
            ({"rows": 32, "d": 64}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 8}),
            ({}, {"LARGEST": 0, "ROWS": 64, "BLOCK_N": 32, "num_warps": 8}),
        ],
        90: [
            ({"bytes": 2, "rows": 16, "d": 64, "masked": 0}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 2}),
            ({"bytes": 2, "rows": 16, "d": 64}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 1}),
            ({"bytes": 2, "rows": 16}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 2}),
            ({"bytes": 2, "rows": 32}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 64, "d": 32}, {"ROWS": 64, "BLOCK_N": 64, "num_warps": 4, "max_registers": 128}),
            ({"bytes": 2, "rows": 64, "d": 64, "dropout": 0},
             {"ROWS": 64, "BLOCK_N": 64, "num_warps": 4, "max_registers": 128}),
            ({"bytes": 2, "rows": 64, "d": 64, "masked": 0},
             {"ROWS": 64, "BLOCK_N": 64, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "rows": 64, "d": 64}, {"ROWS": 64, "BLOCK_N": 64, "num_warps": 4}),
            ({"bytes": 2, "rows": 64}, {"ROWS": 64, "BLOCK_N": 64, "num_warps": 8}),
            ({"bytes": 2, "rows": 128, "d": 32, "dropout": 0},
             {"ROWS": 128, "BLOCK_N": 64, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "rows": 128, "d": 32}, {"ROWS": 128, "BLOCK_N": 16, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "rows": 128, "d": 64, "dropout": 0, "masked": 0},
             {"ROWS": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "rows": 128}, {"ROWS": 128, "BLOCK_N": 32, "num_warps": 8}),
            ({"rows": 16, "d": 64}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"rows": 16}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 4}),
            ({"rows": 32, "d": 64}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 8}),
            ({}, {"LARGEST": 0, "ROWS": 64, "BLOCK_N": 32, "num_warps": 8}),
        ],
        100: [
            ({"bytes": 2, "rows": 16, "d": 64, "masked": 0}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 2}),
            ({"bytes": 2, "rows": 16, "d": 64}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 1}),
            ({"bytes": 2, "rows": 16}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 2}),
            ({"bytes": 2, "rows": 32}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 64, "d": 64, "masked": 0},
             {"ROWS": 64, "BLOCK_N": 64, "num_warps": 4, "max_registers": 128}),
            ({"bytes": 2, "rows": 64, "d": 32}, {"ROWS": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 64, "d": 64}, {"ROWS": 64, "BLOCK_N": 64, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "rows": 64}, {"ROWS": 64, "BLOCK_N": 64, "num_warps": 8}),
            ({"bytes": 2, "rows": 128, "d": 32, "dropout": 0, "masked": 0},
             {"ROWS": 128, "BLOCK_N": 64, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "rows": 128, "d": 32, "masked": 0},
             {"ROWS": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "rows": 128, "d": 32}, {"ROWS": 128, "BLOCK_N": 32, "num_warps": 8}),
            ({"bytes": 2, "rows": 128, "d": 64, "dropout": 0, "masked": 0},
             {"ROWS": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "rows": 128, "d": 64, "dropout": 0},
             {"ROWS": 128, "BLOCK_N": 16, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "rows": 128, "masked": 0}, {"ROWS": 128, "BLOCK_N": 16, "num_warps": 8}),
            ({"bytes": 2, "rows": 128, "d": 64, "bias": 0},
             {"ROWS": 128, "BLOCK_N": 16, "num_warps": 8, "max_registers": 168}),
            ({"bytes": 2, "rows": 128}, {"ROWS": 128, "BLOCK_N": 16, "num_warps": 8}),
            ({"rows": 16, "d": 64}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"rows": 16}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 4}),
            ({"rows": 32, "d": 64}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 8}),
            ({}, {"LARGEST": 0, "ROWS": 64, "BLOCK_N": 32, "num_warps": 8}),
        ],
        120: [
            ({"bytes": 2, "rows": 16, "d": 64, "masked": 0}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 2}),
            ({"bytes": 2, "rows": 16, "d": 64}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 1}),
            ({"bytes": 2, "rows": 16}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 2}),
            ({"bytes": 2, "rows": 32}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 64, "d": 32}, {"ROWS": 64, "BLOCK_N": 64, "num_warps": 4}),
            ({"bytes": 2, "rows": 64, "d": 64}, {"ROWS": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2, "rows": 64}, {"ROWS": 64, "BLOCK_N": 16, "num_warps": 8}),
            ({"bytes": 2, "rows": 128, "d": 32}, {"ROWS": 128, "BLOCK_N": 32, "num_warps": 8}),
            ({"bytes": 2, "rows": 128, "d": 64}, {"ROWS": 128, "BLOCK_N": 16, "num_warps": 8}),
            ({"rows": 16, "d": 64}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"rows": 16}, {"ROWS": 16, "BLOCK_N": 16, "num_warps": 4}),
            ({"rows": 32, "d": 64}, {"ROWS": 32, "BLOCK_N": 32, "num_warps": 8}),
            ({}, {"LARGEST": 0, "ROWS": 64, "BLOCK_N": 32, "num_warps": 8}),
        ],
    },
    "attention_backward_queries": {
        0: [
            ({"bytes": 2}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"d": 32}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
            ({"d": 64}, {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
            ({}, {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
        80: [
            ({"bytes": 2, "d": 32, "dropout": 0, "masked": 0},
             {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 32, "masked": 0}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "d": 32, "dropout": 0}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "d": 64, "dropout": 0, "masked": 0},
             {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "d": 64, "bias": 0}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8}),
            ({"d": 32}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
            ({"d": 64}, {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
            ({}, {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
        90: [
            ({"bytes": 2, "d": 64, "dropout": 0, "masked": 0},
             {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 32, "masked": 0}, {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 32}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "d": 64}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2, "dropout": 0}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2}, {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8}),
            ({"d": 32}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
            ({"d": 64}, {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
            ({}, {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
        100: [
            ({"bytes": 2, "d": 64, "dropout": 0, "masked": 0},
             {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8}),
            ({"d": 32}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
            ({"d": 64}, {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
            ({}, {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
        120: [
            ({"bytes": 2, "d": 32}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2, "d": 64, "bias": 0}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2, "d": 64}, {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "max_registers": 168}),
            ({"d": 32}, {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
            ({"d": 64}, {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
            ({}, {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
    },
    "attention_backward_keys": {
        0: [
            ({"bytes": 2, "d": 64}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 4}),
            ({"bytes": 2}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8}),
            ({"d": 64, "dropout": 0, "masked": 0}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}),
            ({"d": 64}, {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}),
            ({}, {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
        80: [
            ({"bytes": 2, "d": 32, "masked": 0}, {"BLOCK_M": 32, "BLOCK_N": 128, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 32, "dropout": 0},
             {"BLOCK_M": 16, "BLOCK_N": 128, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 32}, {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "d": 64, "dropout": 0, "masked": 0},
             {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "d": 64, "masked": 0}, {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "d": 64, "dropout": 0}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8}),
            ({"bytes": 2, "d": 64}, {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4}),
            ({"bytes": 2}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8}),
            ({"d": 64, "dropout": 0, "masked": 0}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}),
            ({"d": 64}, {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}),
            ({}, {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
        90: [
            ({"bytes": 2, "d": 32, "masked": 0}, {"BLOCK_M": 32, "BLOCK_N": 128, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2, "d": 32}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 4, "max_registers": 168}),
            ({"bytes": 2, "d": 64}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 4}),
            ({"bytes": 2}, {"BLOCK_M": 32, "BLOCK_N": 128, "num_warps": 8}),
            ({"d": 64, "dropout": 0, "masked": 0}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}),
            ({"d": 64}, {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}),
            ({}, {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
        100: [
            ({"bytes": 2, "d": 64, "bias": 0},
             {"BLOCK_M": 32, "BLOCK_N": 128, "num_warps": 8, "max_registers": 128}),
            ({"bytes": 2}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8}),
            ({"d": 64, "dropout": 0, "masked": 0}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}),
            ({"d": 64}, {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}),
            ({}, {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
        120: [
            ({"bytes": 2, "d": 64, "masked": 0}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 4}),
            ({"bytes": 2, "d": 32}, {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 4}),
            ({"bytes": 2, "d": 64}, {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 8}),
            ({"bytes": 2}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8}),
            ({"d": 64, "dropout": 0, "masked": 0}, {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}),
            ({"d": 64}, {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}),
            ({}, {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}),
        ],
    },
    "attention_backward_bias": {
        0: [
            ({"bytes": 2}, {"BLOCK": 64, "num_warps": 8}),
            ({"d": 64}, {"BLOCK": 32, "num_warps": 8}),
            ({}, {"BLOCK": 16, "num_warps": 4, "num_stages": 1}),
        ],
        80: [
            ({"bytes": 2}, {"BLOCK": 32, "num_warps": 4, "num_stages": 1}),
            ({"d": 64}, {"BLOCK": 32, "num_warps": 8}),
            ({}, {"BLOCK": 16, "num_warps": 4, "num_stages": 1}),
        ],
        90: [
            ({"bytes": 2}, {"BLOCK": 64, "num_warps": 8}),
            ({"d": 64}, {"BLOCK": 32, "num_warps": 8}),
            ({}, {"BLOCK": 16, "num_warps": 4, "num_stages": 1}),
        ],
        100: [
            ({"bytes": 2, "d": 32}, {"BLOCK": 64, "num_warps": 8}),
            ({"bytes": 2}, {"BLOCK": 64, "num_warps": 4}),
            ({"d": 64}, {"BLOCK": 32, "num_warps": 8}),
            ({}, {"BLOCK": 16, "num_warps": 4, "num_stages": 1}),
        ],
    },
    # fmt: on
    # LayerNorm: VALUES of a row in one thread at most. Without a bound on the forward's registers ptxas aims at rounder
    # ones than it needs and spills two or three. The backward's grid is persistent and must fit: with `values`
    # held, a multiprocessor takes RESIDENT_WARPS of max_registers (65,536 are 20 warps of 96 or 16 of 128).
    "layer_norm_forward": {
        0: [
            ({"bytes": 2}, {"VALUES": 32, "max_registers": 80, "num_warps": 4}),
            ({}, {"VALUES": 32, "max_registers": 96, "num_warps": 4}),
        ],
    },
    "layer_norm_backward": {0: [({}, {"VALUES": 12, "num_warps": 4})]},
    "layer_norm_backward_resident": {
        0: [
            ({"values": 8}, {"RESIDENT_WARPS": 20, "max_registers": 96, "num_stages": 2}),
            ({"values": 12}, {"RESIDENT_WARPS": 16, "max_registers": 128, "num_stages": 2}),
            ({}, {"RESIDENT_WARPS": 16, "max_registers": 128, "num_stages": 1}),
        ],
    },
    # Bias + GELU: blocks of at most COLS columns in tiles of ELEMENTS.
    "bias_gelu_forward": {0: [({}, {"COLS": 1024, "ELEMENTS": 4096, "num_warps": 4})]},
    "bias_gelu_backward": {
        0: [({}, {"COLS": 1024, "ELEMENTS": 4096, "RESIDENT": 4, "max_registers": 128, "num_warps": 4})],
    },
    # Softmax: rows of up to ONE_PASS keys are read once; VALUES elements a thread.
    "softmax": {0: [({}, {"ONE_PASS": 16384, "VALUES": 16, "num_warps": 4})]},
}


def architecture() -> int:
    """Compute capability of the current GPU as ten times major plus minor; 0 in the interpreter."""
    if triton.knobs.runtime.interpret:
        return 0
    return int(triton.runtime.driver.active.get_current_target().arch)


def parameters(kernel: str, capability: int, **facts: int) -> dict[str, int]:
    """The parameters of the first rule of ``kernel`` that the facts satisfy. Treat the result as read-only.

    Raises:
        KeyError: ``kernel`` has no entry, or none of its rules applies.
    """
    return _lookup(kernel, capability, tuple(sorted(facts.items())))


@functools.cache
def _lookup(kernel: str, capability: int, facts: tuple[tuple[str, int], ...]) -> dict[str, int]:
    rules = TABLE[kernel]
    known = dict(facts)
    for limits, chosen in rules.get(capability) or rules.get(NEAREST.get(capability, 0)) or rules[0]:
        if all(known[name] <= limit for name, limit in limits.items()):
            return chosen
    raise KeyError(f"no launch rule of {kernel} for compute capability {capability} applies to {known}")


def launch_options(chosen: dict[str, int]) -> dict[str, int]:
    """The part of ``chosen`` that Triton itself takes. It is asked to fuse multiply-adds: the default is to change."""
    options: dict[str, int] = {"enable_fp_fusion": True}
    options.update((name, chosen[name]) for name in ("num_warps", "num_stages") if name in chosen)
    if "max_registers" in chosen:
        options["maxnreg"] = chosen["max_registers"]
    return options
