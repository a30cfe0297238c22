"""What the row-wise kernels need of a GPU, read from the machine code that their own launchers compile (compiled.py).

By default the kernels of the usual width for sm_90; with ``BERT_FAST_COMPILE=all`` every case of cases_rows.py for
every GPU that compiled.py knows. Persistent grids must fit: programs that wait for a place double a kernel's time.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")

from bert_fast.kernels import launch  # noqa: E402

SCRIPT = Path(__file__).with_name("compiled.py")
ALL = os.environ.get("BERT_FAST_COMPILE") == "all"
CASES = r"^cases_rows " if ALL else r"layer_norm H=768( none| no bias)?$|bias_gelu I=3072 none$|softmax K=500$"
GPUS = ("80", "86", "89", "90", "100", "120") if ALL else ("90",)


@pytest.fixture(scope="module")
def rows():
    """From a process of its own: kernels imported for the interpreter cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, SCRIPT, "--json", "--arch", *GPUS, "--dtype", "bfloat16", "--only", CASES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 10, CASES
    return rows


def test_the_table(rows, capsys):
    spec = importlib.util.spec_from_file_location("compiled", SCRIPT)
    script = sys.modules.setdefault("compiled", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(script)
    with capsys.disabled():
        print("\n" + script.table([script.Resources(**row) for row in rows]))
    for row in rows:
        assert row["blocks"] >= 1, row


def test_nothing_spills(rows):
    spilling = [row for row in rows if row["spills"] or row["stack"]]
    assert not spilling, spilling


def test_persistent_grids_are_resident(rows):
    judged = set()
    for row in rows:
        if row["kernel"] != "_backward_kernel" or row["case"].startswith("softmax"):
            continue
        if row["case"].startswith("bias_gelu"):
            needed = launch.parameters("bias_gelu_backward", row["capability"])["RESIDENT"]
        else:
            # the wider the row, the fewer values a thread holds, but for the widest: the largest grid is asked of all
            values = {768: 12, 312: 12, 1024: 8, 8192: 16}[int(row["case"].split("H=")[1].split()[0])]
            rule = launch.parameters("layer_norm_backward_resident", row["capability"], values=values)
            needed = max(1, rule["RESIDENT_WARPS"] // row["warps"])
        assert row["blocks"] >= needed, row
        judged.add(row["case"].split(" ")[0])
    assert judged == {"layer_norm", "dropout_add_layer_norm", "gelu_layer_norm", "bias_gelu"}


def test_rows_are_read_in_vectors(rows):
    """16 bytes a thread in forwards, at least 8 in the LayerNorm backward; scalars only for statistics of a row."""
    for row in rows:
        narrow = sum(n for bits, n in row["loads"].items() if int(bits) < 64)
        allowed = 6 if row["kernel"] == "_backward_kernel" and "layer_norm" in row["case"] else 0
        assert narrow <= allowed, row
        assert sum(n for bits, n in row["loads"].items() if int(bits) >= 64) >= 3, row
        # 312 and 500 are multiples of 4 elements but not of 8 that fill the lanes
        if row["kernel"] == "_forward_kernel" and not any(name in row["case"] for name in ("autocast", "312", "500")):
            assert row["loads"]["128"] >= 4, row
