"""Persistent grids must fit the GPU: programs that wait for a place would double the kernel's time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")

BACKWARDS = ("dropout_add_layer_norm H=768", "layer_norm H=768", "gelu_layer_norm H=768 none", "bias_gelu I=3072 none")


@pytest.fixture(scope="module")
def compiled():
    """The kernels of the usual width, compiled for sm_90 through their launchers, in a process of their own."""
    script = Path(__file__).with_name("compiled.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    rows = []
    for only in ("layer_norm H=768", "bias_gelu I=3072 none"):
        command = [sys.executable, script, "--json", "--arch", "90", "--dtype", "bfloat16", "--only", only]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        rows += [json.loads(line) for line in done.stdout.splitlines()]
    return rows


@pytest.mark.parametrize("case", BACKWARDS)
def test_the_backwards_persistent_grid_is_resident(compiled, case):
    from bert_fast.kernels import launch

    (row,) = [r for r in compiled if r["case"] == case and r["kernel"] == "_backward_kernel"]
    if case.startswith("bias_gelu"):
        needed = launch.parameters("bias_gelu_backward", 90)["RESIDENT"]
    else:
        # 768 columns: 12 of a row in each thread
        needed = launch.parameters("layer_norm_backward_resident", 90, values=12)["RESIDENT_WARPS"] // row["warps"]
    assert row["blocks"] >= needed, row
    assert row["spills"] == 0, row


def test_rows_are_read_in_vectors(compiled):
    """16 bytes a thread in forwards, at least 8 in the LayerNorm backward; scalars only for statistics of a row."""
    for row in compiled:
        narrow = sum(n for bits, n in row["loads"].items() if int(bits) < 64)
        wide = sum(n for bits, n in row["loads"].items() if int(bits) >= 64)
        allowed = 6 if row["kernel"] == "_backward_kernel" and "layer_norm" in row["case"] else 0
        assert narrow <= allowed, row
        assert wide >= 3, row
        if row["kernel"] == "_forward_kernel" and "autocast" not in row["case"]:
            assert row["loads"]["128"] >= 4, row
