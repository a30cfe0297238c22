"""The supervisor: an item that fails, crashes, hangs or takes the GPU with it costs itself and nothing else."""

import json
import sys
import time

import pytest

from benchmarks.gpu.plan import SECTIONS, Item, Section, deadlines, selected
from benchmarks.gpu.report import Report
from benchmarks.gpu.supervise import Supervisor
from benchmarks.options import Options

# A worker whose items do what their names say; each start is noted beside the events.
WORKER = """
import json, os, signal, sys, time
events = open(sys.argv[2], "a")
labels = sys.argv[5:]
with open(os.path.join(os.path.dirname(sys.argv[2]), "starts"), "a") as starts:
    starts.write(" ".join(labels) + "\\n")
def write(**event):
    events.write(json.dumps(event) + "\\n")
    events.flush()
if "nothing" in labels[0]:
    sys.exit("cannot even import")
for label in labels:
    name = label.partition("/")[2]
    write(event="start", item=label)
    write(event="row", item=label, row={"name": name})
    print("working on", name, flush=True)
    if name.startswith("hang"):
        child = os.fork()
        time.sleep(60)
    if name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("half"):
        events.write('{"event": "row", "item"')
        events.flush()
        os._exit(3)
    lost = name.startswith("lost")
    error = "Traceback: it failed" if name.startswith("fail") or lost else None
    write(event="end", item=label, status="crashed" if lost else "failed" if error else "ok", seconds=0.1, error=error)
    if lost:
        sys.exit(17)
"""


def run(tmp_path, *names, seconds=20.0, limit=1.0):
    items = tuple(Item("toy", name, limit) for name in names)
    options = Options()
    (tmp_path / "log.txt").touch()
    report = Report(tmp_path, options, [Section("toy", 1, items)])
    supervisor = Supervisor(report, options, tmp_path, [sys.executable, "-c", WORKER])
    began = time.monotonic()
    supervisor.run(items, began + seconds)
    on_disk = json.loads((tmp_path / "gpu_check.json").read_text())
    assert on_disk["items"] == report.items
    found = {label.partition("/")[2]: item for label, item in report.items.items()}
    return found, (tmp_path / "starts").read_text().splitlines(), time.monotonic() - began


def statuses(found):
    return {name: item["status"] for name, item in found.items()}


def test_items_that_end_well_share_a_worker(tmp_path):
    found, starts, _ = run(tmp_path, "a", "b", "c")
    assert statuses(found) == {"a": "ok", "b": "ok", "c": "ok"}
    assert found["b"]["rows"] == [{"name": "b"}]
    assert len(starts) == 1


def test_a_failure_is_kept_whole_and_the_worker_goes_on(tmp_path):
    found, starts, _ = run(tmp_path, "a", "fail", "c")
    assert statuses(found) == {"a": "ok", "fail": "failed", "c": "ok"}
    assert found["fail"]["error"] == "Traceback: it failed"
    assert len(starts) == 1


@pytest.mark.parametrize(("name", "words"), [("crash", "SIGSEGV"), ("half", "exit status 3")])
def test_a_crash_costs_one_item_and_its_last_words_are_kept(tmp_path, name, words):
    found, starts, _ = run(tmp_path, "a", name, "c")
    assert statuses(found) == {"a": "ok", name: "crashed", "c": "ok"}
    assert found[name]["rows"] == [{"name": name}]
    assert words in found[name]["error"]
    assert f"working on {name}" in found[name]["error"]
    assert starts[1] == "toy/c"


def test_an_item_that_takes_the_gpu_with_it_gets_a_new_worker_behind_it(tmp_path):
    found, starts, _ = run(tmp_path, "lost", "b", "lost2", "d")
    assert statuses(found) == {"lost": "crashed", "b": "ok", "lost2": "crashed", "d": "ok"}
    assert starts == ["toy/lost toy/b toy/lost2 toy/d", "toy/b toy/lost2 toy/d", "toy/d"]


def test_a_hang_is_killed_with_its_children_and_keeps_its_rows(tmp_path):
    found, _, took = run(tmp_path, "a", "hang", "c")
    assert statuses(found) == {"a": "ok", "hang": "timed out", "c": "ok"}
    assert found["hang"]["rows"] == [{"name": "hang"}]
    assert "it may take 1 s" in found["hang"]["error"]
    assert took < 10


def test_when_the_time_is_over_the_rest_is_not_run_and_says_so(tmp_path):
    found, _, took = run(tmp_path, "a", "hang", "c", seconds=1.5, limit=30)
    assert statuses(found) == {"a": "ok", "hang": "timed out", "c": "not run"}
    assert "the section's time was over" in found["hang"]["error"]
    assert found["c"]["error"] == "no time was left"
    assert took < 10


def test_a_worker_that_cannot_start_fails_all_items_once(tmp_path):
    found, starts, _ = run(tmp_path, "nothing", "b")
    assert statuses(found) == {"nothing": "crashed", "b": "crashed"}
    assert "cannot even import" in found["b"]["error"]
    assert len(starts) == 1


def test_unused_time_goes_to_later_sections_and_shares_shrink_to_fit():
    sections = [Section("a", 100, ()), Section("b", 300, ())]
    assert deadlines(sections, 200) == [50, 200]
    assert deadlines(sections, 500) == [200, 500]
    assert deadlines([], 10) == []


def test_the_plan_fits_ten_minutes_and_names_no_item_twice():
    labels = [item.label for section in SECTIONS for item in section.items]
    assert len(labels) == len(set(labels))
    ordinary = selected(None, build=True, quick=False)
    assert [section.name for section in ordinary] == [section.name for section in SECTIONS]
    assert deadlines(ordinary, 540)[-1] == pytest.approx(540)
    quick = selected(["kernels"], build=False, quick=True)
    assert [section.name for section in quick] == ["kernels"]
    assert 0 < len(quick[0].items) < len(next(s for s in SECTIONS if s.name == "kernels").items)
