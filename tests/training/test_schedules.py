"""Warm-up and decay, step by step, and their checkpoints."""

import pytest
import torch

from bert_fast.training import AdamW, linear_schedule, polynomial_schedule


def rates(make, steps):
    optimizer = AdamW([torch.nn.Parameter(torch.ones(1))], lr=2.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_a_line_up_and_a_line_down():
    assert rates(lambda o: linear_schedule(o, 2, 6), 8) == [0, 1, 2, 1.5, 1, 0.5, 0, 0]


def test_without_warm_up_the_first_step_is_the_fastest():
    assert rates(lambda o: linear_schedule(o, 0, 4), 5) == [2, 1.5, 1, 0.5, 0]


def test_a_warm_up_to_the_end():
    assert rates(lambda o: linear_schedule(o, 4, 4), 6) == [0, 0.5, 1, 1.5, 0, 0]


def test_powers_and_an_end_above_zero():
    found = rates(lambda o: polynomial_schedule(o, 0, 4, power=2, end=0.5), 6)
    assert found == [2, 1 + 0.75**2, 1.25, 1 + 0.25**2, 1, 1]


def test_counted_from_the_start_as_google_does():
    assert rates(lambda o: polynomial_schedule(o, 2, 4, from_start=True), 5) == [0, 1, 1, 0.5, 0]


def test_the_line_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    expected = rates(lambda o: transformers.get_linear_schedule_with_warmup(o, 3, 11), 13)
    assert rates(lambda o: linear_schedule(o, 3, 11), 13) == pytest.approx(expected)


def test_a_checkpoint_keeps_the_numbers():
    optimizer = AdamW([torch.nn.Parameter(torch.ones(1))], lr=2.0)
    saved = polynomial_schedule(optimizer, 2, 6, power=2.0)
    other = linear_schedule(AdamW([torch.nn.Parameter(torch.ones(1))], lr=2.0), 0, 99)
    other.load_state_dict(saved.state_dict())
    assert other.lr_lambdas[0](4) == saved.lr_lambdas[0](4) == 0.25


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"warmup_steps": 5, "total_steps": 4}, "not 5 and 4"),
        ({"warmup_steps": -1, "total_steps": 4}, "not -1 and 4"),
        ({"warmup_steps": 0, "total_steps": 0}, "not 0 and 0"),
        ({"warmup_steps": 0, "total_steps": 4, "power": 0}, "power must be above 0, not 0"),
        ({"warmup_steps": 0, "total_steps": 4, "end": 2}, "end must lie between 0 and 1, not 2"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(arguments, message):
    optimizer = AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ValueError, match=message):
        polynomial_schedule(optimizer, **arguments)
