"""The tuner: what it believes, what it writes, and that it leaves everything else in the table alone."""

import ast
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the tuner times Triton kernels, and Triton is not installed")
from benchmarks.tuning import table  # noqa: E402
from benchmarks.tuning.bench import Lost  # noqa: E402
from benchmarks.tuning.grid import SEARCHES, Search  # noqa: E402
from benchmarks.tuning.search import tune  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "kernels" / "launch.py"
SHORT, LONG = ("short", "forward"), ("long", "forward")
TWO = Search({"BLOCK": (16, 32, 64), "num_warps": (4, 8)}, (SHORT, LONG))


class PaperBench:
    """Times by a formula. Rule 0 takes the short workload, rule 1 the long one."""

    def __init__(self, seconds, wrong=(), rules=None):
        self._seconds, self._wrong = seconds, wrong
        self.table = rules or [({"rows": 64}, {"BLOCK": 32, "num_warps": 4}), ({}, {"BLOCK": 32, "num_warps": 4})]
        self._rules = self.table
        self.calls = 0

    def rules(self, kernel):
        return [(dict(limits), dict(chosen)) for limits, chosen in self.table]

    @contextlib.contextmanager
    def installed(self, kernel, rules):
        self._rules = rules
        try:
            yield
        finally:
            self._rules = self.table

    def rules_used(self, workload, kernel):
        return {0 if workload == SHORT else len(self.table) - 1}

    def chosen(self, workload):
        return self._rules[0 if workload == SHORT else -1][1]

    def seconds(self, workload):
        self.calls += 1
        return self._seconds(workload, self.chosen(workload), self.calls)

    def right(self, workload):
        return self.chosen(workload) not in self._wrong


def run(bench, search=TWO):
    return tune("toy", search, bench, say=lambda words: None)


def test_each_rule_gets_the_fastest_parameters_for_its_own_work():
    def seconds(workload, chosen, _):
        best = 16 if workload == SHORT else 64
        return 1.0 + abs(chosen["BLOCK"] - best) / 64 + (chosen["num_warps"] == 4)

    short, long = run(PaperBench(seconds))
    assert short.after == {"BLOCK": 16, "num_warps": 8}
    assert long.after == {"BLOCK": 64, "num_warps": 8}
    assert short.share == pytest.approx(1.0 / 2.25)
    assert len(short.tried) == 5


def test_what_wins_by_less_than_two_percent_is_not_adopted():
    outcomes = run(PaperBench(lambda workload, chosen, _: 1.0 if chosen["BLOCK"] == 32 else 0.985))
    assert not any(outcome.changed for outcome in outcomes)


def test_a_fast_candidate_that_is_wrong_is_passed_over_for_the_next():
    speed = {16: 0.5, 32: 1.0, 64: 0.8}
    wrong = [{"BLOCK": 16, "num_warps": warps} for warps in (4, 8)]
    outcomes = run(PaperBench(lambda workload, chosen, _: speed[chosen["BLOCK"]], wrong=wrong))
    assert [outcome.after["BLOCK"] for outcome in outcomes] == [64, 64]
    assert {"BLOCK": 16, "num_warps": 4, "share": 0.5, "wrong": True} in outcomes[0].tried


def test_a_candidate_that_does_not_compile_is_noted_and_the_search_goes_on():
    def seconds(workload, chosen, _):
        if chosen["BLOCK"] == 64:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 if chosen["BLOCK"] == 32 else 0.7

    outcomes = run(PaperBench(seconds))
    assert outcomes[0].after["BLOCK"] == 16
    assert any("shared memory" in tried.get("error", "") for tried in outcomes[0].tried)


def test_a_winner_that_does_not_win_again_is_dropped():
    def seconds(workload, chosen, call):
        return 0.5 if chosen["BLOCK"] == 16 and call < 8 else 1.0

    outcomes = run(PaperBench(seconds))
    assert not outcomes[0].changed
    assert "won once and not again" in outcomes[0].note


def test_a_rule_that_no_work_falls_under_is_kept():
    rules = [({"rows": 1}, {"BLOCK": 32, "num_warps": 4}) for _ in range(3)]
    outcomes = run(PaperBench(lambda workload, chosen, _: float(chosen["BLOCK"]), rules=rules))
    assert outcomes[1].note == "no workload falls under this rule"
    assert outcomes[1].after == rules[1][1]
    assert outcomes[0].after["BLOCK"] == outcomes[2].after["BLOCK"] == 16


def test_a_lost_gpu_ends_the_search_and_keeps_what_was_found():
    def seconds(workload, chosen, _):
        if workload == LONG and chosen["BLOCK"] == 64:
            raise Lost("an illegal memory access was encountered")
        return float(chosen["BLOCK"])

    with pytest.raises(Lost) as caught:
        run(PaperBench(seconds))
    short, long = caught.value.outcomes
    assert short.after["BLOCK"] == 16
    assert not long.changed


def test_many_combinations_are_searched_one_parameter_at_a_time_until_nothing_improves():
    wide = Search(dict.fromkeys("abcd", (1, 2, 3, 4, 5)), (SHORT,))
    assert len(list(wide.candidates(dict.fromkeys("abcd", 1)))) == 16

    def seconds(workload, chosen, _):
        # d pays only once a is 2
        return 10.0 - 3 * (chosen["a"] == 2) - 4 * (chosen["a"] == 2 and chosen["d"] == 5)

    bench = PaperBench(seconds, rules=[({}, dict.fromkeys("abcd", 1))])
    assert run(bench, wide)[0].after == {"a": 2, "b": 1, "c": 1, "d": 5}


def test_parameters_a_rule_does_not_have_are_not_invented():
    assert all("num_stages" not in candidate for candidate in SEARCHES["softmax"].candidates({"VALUES": 8, "X": 1}))
    assert {candidate["X"] for candidate in SEARCHES["softmax"].candidates({"VALUES": 8, "X": 1})} == {1}


def test_every_kernel_of_the_table_is_searched():
    kernels = set(table.read(LAUNCH.read_text()))
    assert kernels == set(SEARCHES)


@pytest.mark.parametrize("kernel", list(SEARCHES))
def test_an_entry_is_added_and_nothing_else_changes(kernel):
    text = LAUNCH.read_text()
    before = table.read(text)
    rules = [({"bytes": 2}, {"BLOCK": 64, "num_warps": 4}), ({}, {"BLOCK": 32, "num_warps": 8})]
    changed = table.with_entry(text, kernel, 90, rules)
    after = table.read(changed)
    assert after[kernel] == {**before[kernel], 90: rules}
    assert {k: v for k, v in after.items() if k != kernel} == {k: v for k, v in before.items() if k != kernel}
    comments = [line for line in text.splitlines() if line.strip().startswith("#")]
    assert [line for line in changed.splitlines() if line.strip().startswith("#")] == comments
    ast.parse(changed)


def test_entries_of_other_gpus_survive_and_the_own_one_is_replaced():
    text = LAUNCH.read_text()
    first, second = [({}, {"VALUES": 8})], [({}, {"VALUES": 16})]
    text = table.with_entry(text, "softmax", 100, first)
    text = table.with_entry(text, "softmax", 80, first)
    text = table.with_entry(text, "softmax", 100, second)
    found = table.read(text)["softmax"]
    assert found[80] == first
    assert found[100] == second
    assert list(found) == [0, 80, 100]
    assert table.with_entry(text, "softmax", 100, second) == text


def test_what_is_written_is_formatted_as_the_rest():
    long = {f"a_rather_long_parameter_{i}": i for i in range(4)}
    text = table.with_entry(LAUNCH.read_text(), "softmax", 90, [({"bytes": 2}, long), ({}, {"VALUES": 1})])
    command = [sys.executable, "-m", "ruff", "format", "--diff", "--line-length", "120", "-"]
    pytest.importorskip("ruff", reason="ruff is not installed")
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_unknown_kernel_is_named_and_the_file_stays(tmp_path):
    copy = tmp_path / "launch.py"
    copy.write_text(LAUNCH.read_text())
    with pytest.raises(KeyError, match="nothing"):
        table.write(copy, {"softmax": [({}, {"VALUES": 8})], "nothing": []}, 90)
    assert copy.read_text() == LAUNCH.read_text()


def test_a_rehearsal_runs_the_real_kernels_and_writes_a_table_that_they_can_use(tmp_path):
    copy, report = tmp_path / "launch.py", tmp_path / "tune.json"
    copy.write_text(LAUNCH.read_text())
    arguments = ["--rehearse", "--candidates", "2", "--table", str(copy), "--json", str(report)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tune", *arguments, "--op", "softmax", "attention_forward_tile"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["capability"] == 0
    tried = [row for outcome in found["outcomes"] for row in outcome["tried"]]
    assert tried
    assert all("share" in row for row in tried), tried
    assert set(table.read(copy.read_text())) == set(table.read(LAUNCH.read_text()))
