"""Pre-training from documents: settings, phases, and runs that are stopped and go on."""

import dataclasses
import json

import pytest
import torch
from tiny_training import documents_and_tokenizer

from bert_fast import BertForMaskedLM, BertForPreTraining, BertModel, Tokenizer
from bert_fast.cli import main
from bert_fast.pretrain_command import _FLAGS
from bert_fast.training import PretrainSettings, pretrain
from bert_fast.training.pretraining.phases import PhasedLoader
from bert_fast.training.pretraining.run import new_model, new_optimizer
from bert_fast.training.pretraining.settings import settings_from

NEEDED = {"documents": ["d.txt"], "tokenizer": "t", "output": "o"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Documents, a tokenizer and a small model's config."""
    return documents_and_tokenizer(tmp_path_factory.mktemp("pretraining"))


def settings(folder, output, **changed):
    values = {
        "documents": folder / "documents.txt",
        "tokenizer": str(folder / "tokenizer"),
        "output": str(folder / output),
        "model": str(folder / "small.json"),
        "max_length": [16, 32],
        "steps": [5, 4],
        "batch_size": [8, 4],
        "gradient_accumulation": 2,
        "log_every": 1,
        "save_every": 2,
        "learning_rate": 1e-2,
    }
    return settings_from({**values, **changed})


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


class _StopsAt:
    def __init__(self, step):
        self.step = step

    def __call__(self, line):
        if line["step"] == self.step:
            raise KeyboardInterrupt


def test_a_run_that_is_stopped_in_each_phase_goes_on_to_the_same_losses(folder):
    whole = pretrain(settings(folder, "whole"))
    for stop in (3, 7):
        with pytest.raises(KeyboardInterrupt):
            pretrain(settings(folder, "stopped"), [_StopsAt(stop)])
    pretrain(settings(folder, "stopped"))
    expected = losses(folder / "whole")
    assert losses(folder / "stopped") == expected
    assert [step for step, _ in expected] == list(range(1, 10))
    loaded = BertForPreTraining.from_pretrained(folder / "stopped" / "model")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert len(Tokenizer.from_pretrained(folder / "stopped" / "model")) == loaded.config.vocab_size
    BertModel.from_pretrained(folder / "stopped" / "model")


def test_the_command_learns_and_measures_held_out_text(folder):
    config = folder / "run.toml"
    config.write_text('nsp = false\nsteps = 40\nmax_length = 32\npacked_windows = true\noptimizer = "adamw"\n')
    documents = ["--documents", str(folder / "documents.txt"), "--eval-documents", str(folder / "documents.txt")]
    flags = ["--tokenizer", str(folder / "tokenizer"), "--output", str(folder / "command"), "--batch-size", "8"]
    more = ["--model", str(folder / "small.json"), "--learning-rate", "3e-3", "--evaluate-every", "20", "--quiet"]
    assert main(["pretrain", "--config", str(config), *documents, *flags, *more]) == 0
    lines = [json.loads(line) for line in (folder / "command" / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "eval_mlm_loss" in line]
    assert [line["step"] for line in measured] == [20, 40]
    assert measured[1]["eval_mlm_loss"] < measured[0]["eval_mlm_loss"] < 3.4
    assert 0.02 < measured[1]["eval_mlm_accuracy"] < 1
    assert "nsp_loss" not in lines[0]
    BertForMaskedLM.from_pretrained(folder / "command" / "model")
    kept = json.loads((folder / "command" / "config.json").read_text())
    assert (kept["packed_windows"], kept["batch_size"], kept["learning_rate"]) == (True, [8], 3e-3)


def test_the_google_recipe_is_what_google_published():
    """Devlin et al. (2019), A.2; google-research/bert: optimization.py."""
    made = settings_from({**NEEDED, "batch_size": 512}, "google")
    assert [(p.max_length, p.steps, p.batch_size) for p in made.phases()] == [(128, 900_000, 512), (512, 100_000, 512)]
    assert [p.max_predictions for p in made.phases()] == [20, 77]
    assert (made.warmup_steps, made.total_steps, made.learning_rate) == (10_000, 1_000_000, 1e-4)
    model = torch.nn.Linear(2, 2)
    optimizer = new_optimizer(made, model)
    group = optimizer.param_groups[0]
    assert type(optimizer).__name__ == "AdamW"
    assert (group["betas"], group["eps"], group["weight_decay"], group["bias_correction"]) == (
        (0.9, 0.999), 1e-6, 0.01, False,
    )  # fmt: skip


def test_flags_are_the_settings():
    assert list(_FLAGS) == [field.name for field in dataclasses.fields(PretrainSettings)]


@pytest.mark.parametrize(
    ("values", "recipe", "message"),
    [
        ({"tokenizer": "t"}, None, "documents and output must be given"),
        ({**NEEDED, "learning_rat": 1}, None, "no setting 'learning_rat': did you mean 'learning_rate'"),
        (NEEDED, "gogle", "recipe must be one of google, google-whole-word, not 'gogle'"),
        ({**NEEDED, "steps": [1, 2], "batch_size": [4, 4, 4]}, None, "steps has 2 entries for 3 phases"),
        ({**NEEDED, "gradient_accumulation": 3}, None, "3 does not divide 256"),
        ({**NEEDED, "optimizer": "sgd"}, None, "optimizer must be 'lamb' or 'adamw', not 'sgd'"),
        ({**NEEDED, "warmup": 1.5}, None, "warmup must be a number of steps, or a share below 1, not 1.5"),
        ({**NEEDED, "steps": 0}, None, "must be at least 1"),
        ({**NEEDED, "documents": []}, None, "documents must name a file"),
    ],
)
def test_wrong_settings_are_named(values, recipe, message):
    with pytest.raises(ValueError, match=message):
        settings_from(values, recipe)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_length": 128}, "max_length is 128, but the model has 64 positions"),
        ({"model": "huge"}, "model must be one of tiny, .*, large or a config.json's path, not 'huge'"),
    ],
)
def test_models_that_do_not_fit_are_refused(folder, changed, message):
    tokenizer = Tokenizer.from_pretrained(folder / "tokenizer")
    with pytest.raises(ValueError, match=message):
        new_model(settings(folder, "none", **changed), tokenizer)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "- 1\n", "must hold a mapping of names to values, not a list"),
        ("b.yaml", "a: [\n", "is not YAML"),
        ("c.toml", "a = \n", "is not TOML"),
        ("d.json", "{", "is not JSON"),
        ("e.ini", "", "must end in .yaml, .yml, .toml or .json"),
    ],
)
def test_wrong_configuration_files_are_named(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    assert main(["pretrain", "--config", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert message in error


class _Counting:
    """A loader of a few batches an epoch."""

    def __init__(self, name, count=2):
        self.name, self.count, self.epoch, self.taken = name, count, 0, 0

    def state_dict(self):
        return {"epoch": self.epoch, "taken": self.taken}

    def load_state_dict(self, state):
        self.epoch, self.taken = state["epoch"], state["taken"]

    def __iter__(self):
        while self.taken < self.count:
            self.taken += 1
            yield f"{self.name}{self.epoch}{self.taken}"
        self.epoch, self.taken = self.epoch + 1, 0


def test_phases_without_batches_are_an_error():
    with pytest.raises(ValueError, match="make no batch"):
        list(PhasedLoader([_Counting("a", 0)], [1]))


@pytest.mark.parametrize("taken", range(8))
def test_phases_go_on_after_any_batch(taken):
    def loader():
        return PhasedLoader([_Counting("a"), _Counting("b")], [5, 2])

    expected = ["a01", "a02", "a11", "a12", "a21", "b01", "b02"]
    first = loader()
    source = iter(first)
    begun = [next(source) for _ in range(min(taken, 7))]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert begun + list(second) == expected
