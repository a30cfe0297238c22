"""A run that is killed and started again has the losses of one that was not."""

from pathlib import Path

from benchmarks import kill_training


def test_losses_after_three_kills_are_those_of_an_unbroken_run(tmp_path, monkeypatch):
    """Two of the kills come while a checkpoint is being written."""
    # The processes that are killed have this one's path, but not what conftest.py did to its modules.
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    kill_training.train(str(tmp_path / "whole"), 40)
    found = kill_training.killed_run(tmp_path / "broken", 40, kills=3, seed=1)
    assert found["kills"] == 3
    assert kill_training.losses(tmp_path / "broken") == kill_training.losses(tmp_path / "whole")
    assert not kill_training.unfinished(tmp_path / "broken")
