"""What the attention kernels need of a GPU, read from the machine code that their own launchers compile (compiled.py).

Compiling every plan for every GPU takes many minutes: by default this judges the plans of head dim 64 on the two GPUs
that matter most, with ``BERT_FAST_COMPILE=all`` every case of cases_attention.py on every GPU that compiled.py knows.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")

SCRIPT = Path(__file__).with_name("compiled.py")
ALL = os.environ.get("BERT_FAST_COMPILE") == "all"
MAIN_CASES = (
    r"attention D=(64|32|80|128) S=\d+( dropout)?( bias| key_mask)?$"
    if ALL
    else r"attention D=64 S=\d+( dropout)?$"
)
MAIN_GPUS = ("80", "86", "89", "90", "100", "120") if ALL else ("80", "90")


@pytest.fixture(scope="module")
def script():
    """compiled.py as a module: its table of chips and its arithmetic."""
    spec = importlib.util.spec_from_file_location("compiled", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["compiled"] = module
    spec.loader.exec_module(module)
    return module


def compile_cases(only: str, gpus, dtype: str) -> list[dict]:
    """Rows of compiled.py, from a process of its own: kernels imported for the interpreter cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, SCRIPT, "--json", "--arch", *gpus, "--dtype", dtype, "--only", only]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows, f"no case matches {only}"
    return rows


@pytest.fixture(scope="module")
def rows():
    return compile_cases(MAIN_CASES, MAIN_GPUS, "bfloat16")


def test_the_table(rows, script, capsys):
    """Prints it; every plan of every GPU asked for is there, forward and backward."""
    with capsys.disabled():
        print("\n" + script.table([script.Resources(**row) for row in rows]))
    for gpu in MAIN_GPUS:
        kernels = {row["kernel"] for row in rows if row["capability"] == int(gpu)}
        assert {"forward_tile", "forward_loop", "backward_tile", "backward_queries", "backward_keys"} <= kernels


def test_nothing_spills(rows):
    spilling = [row for row in rows if row["spills"] or row["stack"]]
    assert not spilling, spilling


def test_shared_memory_fits_the_chip(rows, script):
    for row in rows:
        assert row["shared"] <= script.CHIPS[row["capability"]].block_shared, row
        assert row["blocks"] >= 1, row


def test_plain_plans_keep_enough_warps(rows):
    """12 warps on a multiprocessor hide the latency of loads; only a few plans must do with 8."""
    few = [r for r in rows if r["blocks"] * r["warps"] < 8]
    assert not few, few
    hopper = [r for r in rows if r["capability"] == 90 and re.search(r"D=64 S=\d+$", r["case"])]
    assert hopper
    assert all(r["blocks"] * r["warps"] >= 12 for r in hopper), hopper


def test_q_k_and_v_are_read_in_vectors(rows):
    """16 bytes a thread, 8 of the smallest tiles; 32 bits are offsets and lse, 8 what dropout kept, 64 its seed."""
    for row in rows:
        if "bias" in row["case"] or "key_mask" in row["case"]:
            continue
        loads = {int(bits): count for bits, count in row["loads"].items()}
        kept = row["kernel"] == "backward_keys" and "dropout" in row["case"]
        assert set(loads) <= {32, 64, 128} | ({8} if kept else set()), row
        assert loads.get(8, 0) <= 8, row
        # Triton 3.5 and 3.6 read backward_keys' lse and delta once for each column of scores
        most = 64 if "S=16" in row["case"] else 40 if row["kernel"] == "backward_keys" else 24
        assert loads[32] <= most, row
        assert loads.get(128, 0) + loads.get(64, 0) // 2 >= 3, row


def test_dots_run_on_tensor_cores(rows):
    for row in rows:
        assert row["matrix"], row
        if row["capability"] == 90 and "S=16" not in row["case"] and "S=32" not in row["case"]:
            assert any(op.startswith("HGMMA") for op in row["matrix"]), row


def test_float32_is_not_tf32():
    """Without torch's leave, float32 dots use no tensor core at all."""
    for row in compile_cases(r"attention D=32 S=(64|512)$", ("80", "90"), "float32"):
        assert not row["matrix"], row
        assert not row["spills"], row
        assert row["loads"]["128"] >= 3, row


def test_predictions_hold(rows):
    """The plan says ahead what shared memory and accumulators a kernel takes: Hopper's of head dim 64 keep to it."""
    from bert_fast.kernels.attention import plan

    checked = 0
    for row in rows:
        match = re.fullmatch(r"attention D=(64) S=(\d+)( dropout)?", row["case"])
        if row["capability"] != 90 or not match:
            continue
        chosen = plan(int(match[2]), int(match[1]), torch.bfloat16, dropout=bool(match[3]), capability=90)
        (kernel,) = [k for k in (chosen.forward, *chosen.backward) if k.kernel == f"attention_{row['kernel']}"]
        assert row["warps"] == kernel.options["num_warps"], row
        assert row["shared"] <= 1.1 * kernel.predicted["shared_bytes"], (row, kernel)
        assert row["registers"] >= kernel.predicted["accumulators"], (row, kernel)
        checked += 1
    assert checked >= 8


def test_blocks_that_fit(script):
    hopper = script.CHIPS[90]
    assert script.blocks_that_fit(hopper, warps=8, registers=128, shared=49152) == 2  # registers
    assert script.blocks_that_fit(hopper, warps=4, registers=32, shared=100_000) == 2  # shared memory
    assert script.blocks_that_fit(hopper, warps=16, registers=16, shared=0) == 4  # warps
    assert script.blocks_that_fit(hopper, warps=1, registers=16, shared=0) == 32  # blocks
    assert script.blocks_that_fit(hopper, warps=4, registers=32, shared=0, columns=256) == 2  # tensor memory
    assert script.blocks_that_fit(script.CHIPS[89], warps=4, registers=32, shared=110_000) == 0
