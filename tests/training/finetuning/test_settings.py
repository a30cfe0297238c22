"""Options: from where they come, and whose they are."""

import argparse
import dataclasses

from bert_fast import finetune_commands as commands
from bert_fast.training.finetuning.settings import NAMES, READING, FinetuneSettings, sorted_out
from bert_fast.training.tasks import TASKS


def test_no_two_options_have_one_name():
    assert len({*NAMES, *READING}) == len(NAMES) + len(READING)
    for task in TASKS.values():
        assert not {*task.options()} & {*NAMES, *READING}


def test_options_are_sorted_out():
    task, settings, reading = sorted_out("classification", {"text": "t", "epochs": 1, "format": "csv", "labels": ["a"]})
    assert (task.text, task.labels) == ("t", ("a",))
    assert settings == dataclasses.replace(FinetuneSettings(), epochs=1)
    assert reading == {"format": "csv"}


def test_flags_are_options_of_the_library():
    assert set(commands.TASKS) == set(TASKS)
    columns = {option for task in TASKS.values() for option in task.options()}
    assert {*commands._COLUMNS, "choices", "labels"} <= columns
    assert {*commands._TRAINING} <= {*NAMES}


def test_given_options_are_parsed():
    parser = argparse.ArgumentParser()
    commands.add(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    line = "finetune --text t --labels a b --epochs 2 --set weight_decay=0.1 --set class-weights=balanced --no-quotes"
    line += " --best-metric=-eval_loss"
    assert commands._given(parser.parse_args(line.split())) == {
        "text": "t",
        "labels": ["a", "b"],
        "epochs": 2,
        "weight_decay": 0.1,
        "class_weights": "balanced",
        "best_metric": "-eval_loss",
        "quotes": False,
    }
