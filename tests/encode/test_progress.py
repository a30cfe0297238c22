"""Progress: a bar on a terminal, now and then a line in a log, nothing when told so."""

import builtins
import sys
import time

import pytest

from bert_fast.encode.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_ten_seconds(clock, capsys):
    progress = Progress(1000, "bytes")
    for step in range(1, 9):
        clock[0] += 4
        progress.update(step * 100, 20)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["60 texts, 5 texts/s, 30%, 0:28 left", "120 texts, 5 texts/s, 60%, 0:16 left"]


def test_a_resumed_job_counts_its_own_speed_and_an_unknown_total_gives_no_percentage(clock, capsys):
    progress = Progress(1000, "bytes", start=500)
    clock[0] += 3600
    progress.update(600, 36000)
    assert capsys.readouterr().err == "36,000 texts, 10 texts/s, 60%, 4:00:00 left\n"
    progress = Progress(None, "rows")
    clock[0] += 20
    progress.update(0, 40)
    assert capsys.readouterr().err == "40 texts, 2 texts/s\n"


def test_quiet_says_nothing(clock, capsys):
    progress = Progress(10, "rows", quiet=True)
    clock[0] += 99
    progress.update(5, 5)
    progress.close()
    assert capsys.readouterr().err == ""


def test_a_terminal_without_tqdm_gets_one_line_that_changes(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    real = builtins.__import__

    def without_tqdm(name, *arguments, **named):
        if name == "tqdm":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without_tqdm)
    progress = Progress(100, "rows")
    for done in (10, 20):
        clock[0] += 1
        progress.update(done, 10)
    progress.close()
    assert (
        capsys.readouterr().err
        == "\r\x1b[K10 texts, 10 texts/s, 10%, 0:09 left\r\x1b[K20 texts, 10 texts/s, 20%, 0:08 left\n"
    )


def test_a_terminal_with_tqdm_gets_its_bar(capsys, monkeypatch):
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(100, "rows", start=40)
    progress.update(100, 60)
    progress.close()
    said = capsys.readouterr().err
    assert "100/100" in said and "texts/s" in said
