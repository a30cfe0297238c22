"""The plugin that records tests as they end: whole texts, kills, and processes that lost the GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOST = 17

TESTS = """
import os, pathlib, pytest
def test_good(): pass
def test_bad():
    assert [1, 2, 3] == [1, 2, 4], "the numbers differ"
@pytest.mark.skip(reason="not today")
def test_skipped(): pass
@pytest.fixture
def broken(): raise OSError("no such device")
def test_of_a_broken_fixture(broken): pass
def test_poison():
    pathlib.Path(os.environ["POISON"]).touch()
    raise RuntimeError("an illegal memory access was encountered")
def test_after(): pass
def test_last(): pass
"""
# A GPU that is lost to the process in which test_poison ran.
CONFTEST = """
import os, pathlib
from benchmarks.gpu import pytest_record
started = os.path.exists(os.environ["POISON"])
pytest_record._gpu_lost = lambda: not started and os.path.exists(os.environ["POISON"])
"""


def session(folder, *arguments, tests=TESTS, **variables):
    (folder / "test_toy.py").write_text(tests)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "empty.ini").write_text("[pytest]\n")
    record = folder / "record.jsonl"
    files = {"BERT_FAST_TEST_RECORD": str(record), "POISON": str(folder / "poison")}
    environment = {**os.environ, **files, **variables}
    environment.pop("PYTEST_XDIST_WORKER", None)  # this test may itself run in one
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu.pytest_record", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-c", str(folder / "empty.ini"), "--rootdir", str(folder), str(folder), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    return done, {row["test"].rpartition("::")[2]: row for row in rows}, rows


def test_outcomes_are_recorded_with_their_texts(tmp_path):
    _, found, _ = session(tmp_path)
    assert found["test_good"]["outcome"] == "passed"
    assert "the numbers differ" in found["test_bad"]["text"]
    assert found["test_skipped"]["text"].endswith("not today")
    assert found["test_of_a_broken_fixture"]["outcome"] == "failed"
    assert "no such device" in found["test_of_a_broken_fixture"]["text"]


def test_a_session_that_loses_the_gpu_ends_and_the_next_one_goes_on_behind_it(tmp_path):
    done, found, _ = session(tmp_path)
    assert done.returncode == LOST, done.stdout
    assert "illegal memory access" in found["test_poison"]["text"]
    assert "test_after" not in found
    done, found, rows = session(tmp_path)
    assert done.returncode in (0, 1)
    assert found["test_after"]["outcome"] == found["test_last"]["outcome"] == "passed"
    assert len(rows) == len(found), "a test that had been settled ran again"


def test_shards_run_every_test_once(tmp_path):
    many = "import pytest\n@pytest.mark.parametrize('n', range(20))\ndef test_one(n): pass\n"
    counts = []
    for part in range(3):
        done, found, rows = session(tmp_path, tests=many, BERT_FAST_TEST_SHARD=f"{part}/3")
        assert done.returncode == 0, done.stdout
        counts.append(len(rows))
    assert counts[0] < counts[1] < counts[2] == len(found) == 20


def test_a_file_that_cannot_be_collected_is_a_failure(tmp_path):
    done, found, _ = session(tmp_path, tests="import nothing_like_it\n")
    (row,) = found.values()
    assert done.returncode == 2
    assert row["outcome"] == "failed"
    assert "nothing_like_it" in row["text"]


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    from benchmarks.gpu import pytest_record

    record = tmp_path / "record.jsonl"
    record.write_text('{"test": "a", "outcome": "passed", "seconds": 1}\n{"test": "b", "outc')
    assert [row["test"] for row in pytest_record.recorded(record)] == ["a"]
