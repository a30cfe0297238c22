"""A run's folder: what is no run's is left alone, and a run is gone on with only as it began."""

import pytest

from bert_fast.training.run_directory import RunDirectory

BEGUN = {"epochs": 1, "train": ["a/rows.csv"], "keep": 2, "labels": ("x", "y")}
CHOICE = {"free": {"keep"}, "files": {"train"}}


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.begin(BEGUN, {})
    (directory.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    return directory


def test_a_file_or_another_folders_config_is_not_written_over(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file: a run needs a folder"):
        RunDirectory(tmp_path / "file").begin(BEGUN, {})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a config\.json, but no run"):
        RunDirectory(tmp_path).begin(BEGUN, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "file"]
    assert (tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize("changed", [{}, {"keep": 5}, {"train": ["elsewhere/rows.csv"]}, {"new": 1}])
def test_what_may_change_in_the_course_of_a_run(run, changed):
    run.check_same({**BEGUN, **changed}, **CHOICE)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epochs": 3}, "began with epochs=1, not 3"),
        ({"train": ["a/others.csv"]}, r"began with train=\['a/rows.csv'\], not \['a/others.csv'\]"),
        ({"train": None}, "not None"),
        ({"labels": ("x", "z")}, r"began with labels=\['x', 'y'\], not \['x', 'z'\]"),
    ],
)
def test_what_may_not(run, changed, said):
    with pytest.raises(ValueError, match=said):
        run.check_same({**BEGUN, **changed}, **CHOICE)
    (run.path / "checkpoints" / "step-00000001").rmdir()
    run.check_same({**BEGUN, **changed}, **CHOICE)  # nothing was trained yet


def test_damaged_files_are_named(run):
    run.metrics_file.write_text('{"step": 1}\njunk\n{"st')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not JSON"):
        run.metrics()
    (run.path / "config.json").write_text("junk")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        run.check_same(BEGUN, **CHOICE)
