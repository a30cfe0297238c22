"""The benchmark of the optimizers' trajectories, over a few steps: ours stay near float64, as the loops do."""

import pytest

from benchmarks.optimizer_trajectories import CONTENDERS, measure


@pytest.fixture(scope="module")
def rows():
    return measure(5)


def test_every_optimizer_is_measured_on_every_workload(rows):
    assert len(rows) == 2 * len(CONTENDERS)
    assert all("ours to loop" in row and "loop to float64" in row for row in rows)


def test_ours_are_as_near_to_float64_as_the_loops_are(rows):
    for row in rows:
        # On the BERT, Adam's first steps turn gradients that are nothing but rounding errors into whole steps.
        limit = 2e-6 if row["workload"] == "random" else 5e-4
        assert 0 < row["ours to float64"] < limit, row
