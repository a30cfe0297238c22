"""gpu_check as a whole, rehearsed on the CPU: every item runs, and what it found is on disk."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.plan import KERNELS, SECTIONS

ROOT = Path(__file__).resolve().parents[2]


def gpu_check(out, *arguments):
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    pytest.importorskip("triton", reason="the kernels run in Triton's interpreter, and Triton is not installed")
    pytest.importorskip("transformers", reason="transformers is the peer that models are measured beside")
    out = tmp_path_factory.mktemp("gpu_check")
    done = gpu_check(out, "--rehearse")
    report = json.loads((out / "gpu_check.json").read_text())
    return done, report, out


def test_every_item_of_the_plan_ends_well(rehearsal):
    done, report, out = rehearsal
    expected = [item.label for section in SECTIONS if section.name != "build" for item in section.items]
    assert list(report["items"]) == expected
    wrong = {label: item for label, item in report["items"].items() if item["status"] != "ok"}
    assert not wrong, json.dumps(wrong, indent=1) + (out / "log.txt").read_text()[-5000:]
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(item["rows"] for item in report["items"].values())


def test_every_kernel_was_right_and_timed_in_every_direction(rehearsal):
    _, report, _ = rehearsal
    for name in KERNELS:
        rows = [row for row in report["items"][f"kernels/{name}"]["rows"] if row["provider"] == "bert_fast"]
        assert rows, name
        for row in rows:
            assert row["right"] is True
            assert row["error_ratio"] <= 1
            assert row["us"] > 0
            assert row["bytes"] > 0
        directions = {row["direction"] for row in rows}
        assert directions in ({"forward"}, {"step"}) or "backward" in directions, name


def test_a_rehearsal_passes_no_verdict_on_speed(rehearsal):
    done, report, out = rehearsal
    assert {row["verdict"] for row in report["summary"]} == {"-"}
    assert report["rehearsal"] is True
    assert (out / "table.txt").read_text().strip() in done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["gpu_check.json", "log.txt", "table.txt"]


def test_what_cannot_run_here_says_why(rehearsal):
    _, report, _ = rehearsal
    rows = {row.get("way", row["provider"]): row for row in report["items"]["model/latency"]["rows"]}
    assert rows["CUDA graph"]["not run"] == "needs a GPU"
    peers = {row["provider"]: row for row in report["items"]["kernels/attention S=128"]["rows"]}
    assert peers["sdpa cudnn"]["not run"] == "needs a GPU"
    assert any("not run" in row for row in report["items"]["sanitizer/racecheck"]["rows"])


def test_without_a_gpu_and_without_rehearsal_each_item_fails_by_itself_and_says_so(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = gpu_check(tmp_path, "--only", "machine,kernels", "--quick", "--minutes", "2")
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert done.returncode == 1
    assert report["items"]["machine/facts"]["status"] == "ok"
    assert report["items"]["kernels/roofs"]["status"] == "failed"
    assert "no CUDA GPU is available" in report["items"]["kernels/unpad"]["error"]
    assert "kernels/roofs: failed" in done.stdout


def parent_of(stat):
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None  # it ended while we looked


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found through /proc, which is Linux's")
def test_a_run_that_is_stopped_leaves_what_it_had_and_no_process(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--rehearse", "--only", "kernels", "--out", str(tmp_path)]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    found, deadline = {}, time.monotonic() + 120
    while not found and time.monotonic() < deadline:
        time.sleep(0.5)
        path = tmp_path / "gpu_check.json"
        items = json.loads(path.read_text())["items"] if path.exists() else {}
        found = {label: item for label, item in items.items() if item["status"] == "ok"}
    children = [stat.parent for stat in Path("/proc").glob("[0-9]*/stat") if parent_of(stat) == run.pid]
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=30)
    assert found
    assert run.returncode == 1
    assert "stopped before the end" in output
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {item["status"] for item in report["items"].values()} == {"ok", "not run"}
    assert report["summary"]
    assert children
    assert not any(child.exists() for child in children)


def test_a_section_that_does_not_exist_is_named(tmp_path):
    done = gpu_check(tmp_path, "--only", "kernels,nothing")
    assert done.returncode == 2
    assert "'nothing'" in done.stderr
