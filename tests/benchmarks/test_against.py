"""--against: two processes that answer in turn, each over its own bert_fast."""

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the model sections begin with its model")
from benchmarks import against  # noqa: E402
from benchmarks.settings import Settings  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(tiny=True, threads=1, seconds=0.05, only=("layer_norm",))


@pytest.fixture(scope="module")
def workers():
    pair = [against.Worker(name, None, ("kernels", "no_such_section"), SETTINGS) for name in ("then", "now")]
    yield pair
    for worker in pair:
        worker.stop()


def test_a_tree_beside_itself(workers):
    """What this package is was found without the checkout on the path, and both run the same cases."""
    then, now = workers
    assert then.cases == now.cases
    assert "kernels: layer_norm, forward" in now.cases
    assert Path(now.package).parent.name == "bert_fast"
    row = against._raced("kernels: layer_norm, forward", then, now, 0.05)
    assert row["rounds"] >= 9 and row["then_us"] > 0 and row["now_us"] > 0
    assert row["low"] <= row["speedup"] <= row["high"]


def test_what_a_worker_cannot_do_is_said(workers):
    then, _ = workers
    assert "no_such_section" in then.failed["no_such_section"]


def test_a_revision_that_is_none():
    if subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("not a git checkout: there are no revisions")
    with pytest.raises(ValueError, match="not 'no-such-thing'"):
        against.resolved("no-such-thing")
    assert len(against.resolved("HEAD")) == 40


def test_a_revision_that_does_not_install(tmp_path, monkeypatch):
    class Failed:
        returncode, stdout, stderr = 1, "", "error: no such compiler"

    done = subprocess.CompletedProcess([], 0, stdout=b"", stderr=b"")
    monkeypatch.setattr(against.subprocess, "run", lambda command, **_: Failed if "pip" in command else done)
    with pytest.raises(ValueError, match="does not install: .*no such compiler"):
        against.installed("0" * 40, tmp_path)
