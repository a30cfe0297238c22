"""Options of a wrong type or size are named, in Python and in files, before anything is read or trained."""

import pytest

from bert_fast.training.config_file import read_config_file
from bert_fast.training.finetuning import FinetuneSettings
from bert_fast.training.pretraining.settings import settings_from
from bert_fast.training.tasks import task_from

NEEDED = {"documents": ["d.txt"], "tokenizer": "t", "output": "o"}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"epochs": 1.5}, "epochs must be an integer or None, not 1.5"),
        ({"epochs": True}, "epochs must be an integer or None, not True"),
        ({"epochs": None}, "give epochs, steps or both"),
        ({"batch_size": None}, "give batch_size, max_tokens or both"),
        ({"max_length": "10"}, "max_length must be an integer or None, not '10'"),
        ({"seed": 1.5}, "seed must be an integer, not 1.5"),
        ({"seed": 2**63}, "seed must be below 2[*][*]63"),
        ({"shard": "maybe"}, "shard must be true or false, not 'maybe'"),
        ({"eval_max_tokens": 0}, "eval_max_tokens must be at least 1, not 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, not -1"),
        ({"learning_rate": float("inf")}, "learning_rate must be a number of at least 0, not inf"),
        ({"max_grad_norm": 0}, "max_grad_norm must be above 0 or None, not 0"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be 'no', 'bf16' or 'fp16', not 'fp8'"),
        (
            {"class_weights": 3},
            "class_weights must be a string or a mapping of strings to numbers or a list of numbers",
        ),
        ({"class_weights": {"a": "x"}}, "class_weights must be .*, not {'a': 'x'}"),
    ],
)
def test_of_fine_tuning(option, said):
    with pytest.raises(ValueError, match=said):
        FinetuneSettings(**option)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"nsp": "no"}, "nsp must be true or false, not 'no'"),
        ({"steps": 3.5}, "steps must be a list of integers or an integer, not 3.5"),
        ({"steps": [3, "4"]}, "steps must be a list of integers or an integer"),
        ({"betas": 0.9}, "betas must be 2 numbers, not 0.9"),
        ({"betas": [0.9, 0.99, 0.999]}, "betas must be 2 numbers"),
        ({"documents": 3}, "documents must be a list of strings, not 3"),
        ({"seed": "x"}, "seed must be an integer, not 'x'"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1, not 0"),
        ({"batch_size": [4, 0], "steps": 1}, "batch_size must be at least 1, not 0"),
    ],
)
def test_of_pre_training(option, said):
    with pytest.raises(ValueError, match=said):
        settings_from({**NEEDED, **option})


@pytest.mark.parametrize(
    ("task", "option", "said"),
    [
        ("classification", {"text": ("a", "b")}, r"text must be a string, not \('a', 'b'\)"),
        ("multilabel", {"threshold": "a"}, "threshold must be a number, not 'a'"),
        ("qa", {"stride": 1.5}, "stride must be an integer, not 1.5"),
        ("tokens", {"label_pieces": "last"}, "label_pieces must be 'first' or 'all', not 'last'"),
        ("classification", {"labels": 3}, "labels must be a list of strings, not 3"),
    ],
)
def test_of_tasks(task, option, said):
    with pytest.raises(ValueError, match=said):
        task_from(task, option)


def test_numbers_are_names_of_labels_too():
    assert task_from("classification", {"labels": (0, 1)}).labels == ("0", "1")


def test_yaml_means_what_it_looks_like(tmp_path):
    """To YAML 1.1, 1e-5 is a string and `no` is false."""
    file = tmp_path / "c.yaml"
    file.write_text("a: 1e-5\nb: no\nc: true\nd: 3\ne: 1.5\nf: on\ng: 2E3\nh: false\ni: 1e\nj: null\nk: -1e+2\n")
    read = read_config_file(file)
    assert read == {
        **{"a": 1e-5, "b": "no", "c": True, "d": 3, "e": 1.5, "f": "on", "g": 2000.0, "h": False, "i": "1e"},
        **{"j": None, "k": -100.0},
    }
    assert settings_from({**NEEDED, "learning_rate": read["a"], "mixed_precision": read["b"]}).learning_rate == 1e-5
