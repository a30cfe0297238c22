"""Real checkpoints beside the repository, where there are any."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "checkpoints"


def shared(name):
    """A directory of SHARED; the test is skipped where it is not there."""
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"{name} is not in ../shared/data/checkpoints")
    return path
