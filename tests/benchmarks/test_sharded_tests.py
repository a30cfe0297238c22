"""The item that runs tests in several processes beside each other, and what keeps files without hypothesis going."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import without_hypothesis

from benchmarks.gpu import tests
from benchmarks.options import Options

TESTS = """
import os, pathlib, pytest
@pytest.mark.parametrize("n", range(12))
def test_good(n):
    with open(pathlib.Path(__file__).with_name("emulators"), "a") as file:
        print(os.environ["BERT_FAST_EMULATOR"], file=file)
def test_bad(): assert [1, 2] == [1, 3], "the numbers differ"
@pytest.mark.skip(reason="not today")
def test_skipped(): pass
"""
# A GPU that is lost once, before the first test of each process that is a shard's first.
CONFTEST = """
import os, pathlib
from benchmarks.gpu import pytest_record
mark = pathlib.Path(__file__).with_name("lost-" + os.environ["BERT_FAST_TEST_SHARD"].replace("/", "-"))
def lost():
    first = not mark.exists()
    mark.touch()
    return first
pytest_record._gpu_lost = lost
"""


@pytest.fixture
def three_shards(tmp_path, monkeypatch):
    (tmp_path / "test_toy.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text("import nothing_like_it\n")
    (tmp_path / "empty.ini").write_text("[pytest]\n")
    arguments = ("-c", str(tmp_path / "empty.ini"), "--rootdir", str(tmp_path), str(tmp_path))
    monkeypatch.setitem(tests._ITEMS, "gpu", (arguments, True))
    monkeypatch.setattr(tests.os, "cpu_count", lambda: 6)
    return tmp_path


def everything():
    """The rows, and the error at the end."""
    rows = []
    with pytest.raises(RuntimeError) as error:
        rows.extend(tests.run("gpu", Options()))  # an extension keeps what came before the error
    return rows, str(error.value)


def test_three_processes_run_every_test_once_and_a_broken_file_stops_none(three_shards):
    rows, error = everything()
    *failed, summary = rows
    assert sorted(row["test"].rpartition("::")[2] for row in failed) == ["test_bad", "test_broken.py"]
    assert summary["counts"] == {"passed": 12, "failed": 2, "skipped": 1}
    assert list(summary["skipped because"]) == ["Skipped: not today"]
    assert len(summary["exit"]) == 3
    assert len(set((three_shards / "emulators").read_text().split())) == 1, "each would build an emulator of its own"
    assert "2 tests failed" in error


def test_each_shard_goes_on_behind_a_test_that_took_the_gpu(three_shards):
    (three_shards / "conftest.py").write_text(CONFTEST)
    rows, _ = everything()
    assert rows[-1]["counts"] == {"passed": 12, "failed": 2, "skipped": 1}
    assert [codes[0] for codes in rows[-1]["exit"]] == [tests.LOST] * 3
    assert all(len(codes) == 2 for codes in rows[-1]["exit"])


WITH_HYPOTHESIS = """
import sys
import pytest
import without_hypothesis
sys.modules["hypothesis"] = without_hypothesis.stand_in()
sys.modules["hypothesis.strategies"] = sys.modules["hypothesis"].strategies
from hypothesis import HealthCheck, assume, example, given, note, settings
from hypothesis import strategies as st
settings.register_profile("quick", max_examples=1)
settings.load_profile("quick")
@st.composite
def pairs(draw, most=3): return draw(st.integers(0, most) | st.none())
@pytest.mark.parametrize("size", [1, 2])
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pairs(most=2).map(abs), st.data())
@example(1, None)
def test_from_the_right(tmp_path, size, pair, data): raise AssertionError
@given(pair=pairs(), data=st.lists(st.text()))
@pytest.mark.parametrize("size", [1, 2])
def test_by_name(pair, size, data): raise AssertionError
def test_beside_them(): pass
"""


def test_without_hypothesis_its_tests_are_skipped_and_those_beside_them_run(tmp_path):
    (tmp_path / "test_toy.py").write_text(WITH_HYPOTHESIS)
    (tmp_path / "empty.ini").write_text("[pytest]\n")
    path = os.pathsep.join([str(Path(without_hypothesis.__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    done = subprocess.run(
        [*command, "-c", str(tmp_path / "empty.ini"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "1 passed, 4 skipped" in done.stdout, done.stdout
    assert without_hypothesis.REASON in done.stdout
