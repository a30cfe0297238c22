"""The training loop in one process: weights of labels, what is written, evaluation, and what stops it."""

import json
import math
import resource
import sys

import pytest
import torch
from accelerate import Accelerator
from tiny_training import (
    NO_DROPOUT,
    classifier,
    collected,
    joined,
    metrics,
    pretraining_batches,
    pretraining_model,
    train,
)
from torch import nn
from torch.utils.data import DataLoader

from bert_fast import BertForPreTraining
from bert_fast.training import AdamW, Lamb, ModelLoss, NonFinite, SaveError, fit, parameter_groups, record
from bert_fast.training.data import BatchPlan, Example, PackedCollator, PackedLoader


@pytest.fixture(autouse=True)
def _no_plots(request, monkeypatch):
    """Drawing takes longer than most runs here."""
    if "plot" not in request.node.name and "metrics" not in request.node.name:
        monkeypatch.setattr(record, "plot", lambda metrics, path: None)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_accumulated_batches_are_the_mean_over_their_labels_together():
    """Not the mean of the batches' means, for either of the two losses: their numbers of labels differ widely."""
    parts = pretraining_batches(6)
    counts = [int((part["labels"] != -100).sum()) for part in parts]
    assert max(counts) > 1.3 * min(counts)
    wholes = [joined(parts[:3]), joined(parts[3:])]
    cut, uncut = pretraining_model(**NO_DROPOUT), pretraining_model(**NO_DROPOUT)
    expected = collected(uncut, wholes, steps=4)
    assert collected(cut, parts, steps=4, gradient_accumulation=3) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(weights(cut), weights(uncut), rtol=0, atol=2e-5)


def test_the_mean_of_means_would_be_seen():
    """The test above can fail: batch by batch the losses are others."""
    parts = pretraining_batches(2)
    loss = ModelLoss()
    model = pretraining_model(**NO_DROPOUT)
    means = [loss(model, part)["labels"].item() for part in parts]
    together = loss(model, joined(parts))["labels"].item()
    assert abs(sum(means) / 2 - together) > 1e-4


def test_metrics_say_what_the_steps_were(tmp_path):
    model = pretraining_model()
    fit(
        model,
        pretraining_batches(4),
        AdamW(parameter_groups(model, 0.01), lr=1e-3),
        steps=6,
        log_every=4,
        run_dir=tmp_path,
        config={"anything": 1},
    )
    lines = metrics(tmp_path)
    assert [(line["step"], line["epoch"]) for line in lines] == [(4, 1), (6, 1)]
    for line in lines:
        assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"])
        assert line["lr"] == 1e-3
        assert 0 < line["grad_norm"] < 100
    assert json.loads((tmp_path / "config.json").read_text()) == {"anything": 1}
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 1
    assert "python" in (tmp_path / "command.txt").read_text()
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    loaded = BertForPreTraining.from_pretrained(tmp_path / "model")
    assert torch.equal(weights(loaded), weights(model))


def test_without_matplotlib_there_is_no_plot_and_a_word_about_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train(classifier(), packed_loader(), steps=1, run_dir=tmp_path)
    assert not (tmp_path / "plot.png").exists()
    assert "pip install 'bert-fast[train]'" in capsys.readouterr().err
    assert (tmp_path / "model" / "model.safetensors").is_file()


def run_in_pieces(tmp_path, batches, pieces, make=pretraining_model, **options):
    for last in pieces:
        train(make(), batches(), steps=last, run_dir=tmp_path, **options)
    return [(line["step"], line["loss"]) for line in metrics(tmp_path)]


def shuffled_loader():
    return DataLoader(pretraining_batches(5), batch_size=None, shuffle=True)


def packed_loader():
    examples = [Example(row, labels=len(row) % 3) for row in map(torch.Tensor.numpy, example_rows())]
    plan = BatchPlan([len(e) for e in examples], batch_size=4, shuffle=True, seed=3)
    return PackedLoader(examples, plan, PackedCollator("class"))


def example_rows():
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(5, 100, (4 + k % 9,), generator=generator) for k in range(18)]


@pytest.mark.parametrize("kind", ["DataLoader", "PackedLoader", "list"])
def test_a_run_in_pieces_is_a_run_in_one_to_the_last_bit(tmp_path, kind):
    """Over the ends of epochs, with dropout and accumulation."""
    loader, make = {
        "DataLoader": (shuffled_loader, pretraining_model),
        "PackedLoader": (packed_loader, classifier),
        "list": (lambda: pretraining_batches(5), pretraining_model),
    }[kind]
    options = {"gradient_accumulation": 2, "seed": 7, "max_grad_norm": 1.0}
    whole = run_in_pieces(tmp_path / "whole", loader, [9], make, **options)
    pieces = run_in_pieces(tmp_path / "pieces", loader, [1, 5, 6, 9], make, **options)
    assert whole == pieces
    assert [step for step, _ in pieces] == list(range(1, 10))
    assert len({loss for _, loss in whole}) == 9
    models = [make().from_pretrained(tmp_path / name / "model") for name in ("whole", "pieces")]
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_what_was_measured_after_the_checkpoint_is_measured_again(tmp_path):
    """No step appears twice, and half a line, as a killed process leaves it, is dropped."""
    train(pretraining_model(), pretraining_batches(4), steps=5, run_dir=tmp_path, save_every=3)
    expected = metrics(tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000005"
    newest.rename(tmp_path / "elsewhere")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    train(pretraining_model(), pretraining_batches(4), steps=5, run_dir=tmp_path, save_every=3)
    found = metrics(tmp_path)
    for line in (*expected, *found):
        line.pop("seconds_per_step")
    assert found == expected


def test_unfinished_checkpoints_are_removed_and_old_ones_go(tmp_path):
    (tmp_path / "checkpoints" / ".step-00000009.0123.tmp").mkdir(parents=True)
    train(pretraining_model(), pretraining_batches(4), steps=5, run_dir=tmp_path, save_every=1, keep=3)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"step-0000000{k}" for k in (3, 4, 5)]


def test_not_resuming_does_not_overwrite(tmp_path):
    train(pretraining_model(), pretraining_batches(2), steps=1, run_dir=tmp_path)
    with pytest.raises(ValueError, match="holds a run of 1 steps"):
        train(pretraining_model(), pretraining_batches(2), steps=2, run_dir=tmp_path, resume=False)


def test_another_models_checkpoint_is_refused(tmp_path):
    train(pretraining_model(), pretraining_batches(2), steps=1, run_dir=tmp_path)
    model = pretraining_model()
    only_biases = AdamW([p for name, p in model.named_parameters() if name.endswith("bias")])
    with pytest.raises(ValueError, match="of other parameters"):
        train(model, pretraining_batches(2), steps=2, run_dir=tmp_path, optimizer=only_biases)


def test_a_full_disk_stops_with_the_last_checkpoint_usable(tmp_path):
    """The limit on a file's size stands for it: writing fails in the middle, as it does there."""
    train(pretraining_model(), pretraining_batches(4), steps=2, run_dir=tmp_path, save_every=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(SaveError, match="step-00000004 could not be written.*make room"):
            train(pretraining_model(), pretraining_batches(4), steps=6, run_dir=tmp_path, save_every=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    train(pretraining_model(), pretraining_batches(4), steps=6, run_dir=tmp_path, save_every=2)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


class _Poisoned(ModelLoss):
    """A loss that is infinite for one batch."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, model, batch):
        self.calls += 1
        parts = super().__call__(model, batch)
        return {name: part * (math.inf if self.calls == self.at else 1.0) for name, part in parts.items()}


def test_a_loss_that_is_not_finite_stops_with_its_examples_and_a_saved_state(tmp_path):
    model = classifier()
    with pytest.raises(NonFinite, match=r"step 4: the loss is .*inf.*nonfinite-00000004") as caught:
        train(model, packed_loader(), steps=6, run_dir=tmp_path, loss=_Poisoned(4), save_every=3)
    examples = metrics(tmp_path)[-1]["examples"]
    assert len(examples[0]) == 4
    assert str(examples) in str(caught.value)
    # Nothing was moved, and the state goes on where the step began.
    saved = classifier().from_pretrained(tmp_path / "nonfinite-00000004")
    assert torch.equal(weights(saved), weights(model))
    (tmp_path / "checkpoints").rename(tmp_path / "regular")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "nonfinite-00000004").rename(tmp_path / "checkpoints" / "step-00000003")
    train(classifier(), packed_loader(), steps=6, run_dir=tmp_path)
    train(classifier(), packed_loader(), steps=6, run_dir=tmp_path / "unbroken")
    expected = [(line["step"], line["loss"]) for line in metrics(tmp_path / "unbroken")]
    assert [(line["step"], line["loss"]) for line in metrics(tmp_path)] == expected


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = classifier()
    model.classifier.weight.register_hook(lambda gradient: gradient * math.nan)
    before = weights(model).clone()
    with pytest.raises(NonFinite, match="the gradients' norm is nan"):
        train(model, packed_loader())
    assert torch.equal(weights(model), before)


def test_a_loss_scale_that_overflows_skips_the_step_and_the_schedule(monkeypatch):
    """Accelerate's fp16 needs a GPU; its scaler and all that follows from it do not."""
    accelerator = Accelerator()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17, growth_interval=100)
    monkeypatch.setattr(accelerator, "scaler", scaler)
    own = accelerator._optimizers
    monkeypatch.setattr(accelerator, "unscale_gradients", lambda: [scaler.unscale_(o.optimizer) for o in own])
    model, lines, moved = classifier(**NO_DROPOUT), [], []
    callbacks = [lines.append, lambda _: moved.append(weights(model).clone())]
    before = weights(model).clone()
    model.classifier.weight.register_hook(lambda g: g * (math.inf if scaler.get_scale() > 2**15 else 1.0))
    train(model, packed_loader(), steps=25, accelerator=accelerator, callbacks=callbacks)
    assert torch.equal(moved[1], before)
    assert [line["loss_scale"] for line in lines[:4]] == [2.0**16, 2.0**15, 2.0**15, 2.0**15]
    # the first step that is taken has the schedule's first rate, 0
    assert [line["lr"] for line in lines[2:5]] == [0.0, 0.005, 0.01]
    assert 0 < lines[2]["grad_norm"] < 100
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_best_evaluation_is_kept_and_stops_the_run(tmp_path):
    scores = iter([0.1, 0.5, 0.9, 0.4, 0.3, 0.2, 1.0])
    seen = []

    def evaluate(model, accelerator):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(weights(model).clone())
        return {"accuracy": next(scores)}

    options = {"evaluate": evaluate, "evaluate_every": 1, "best_metric": "accuracy", "early_stopping": 2, "keep": 1}
    model = classifier()
    result = train(model, packed_loader(), steps=30, run_dir=tmp_path, **options)
    assert (result.step, result.best, result.best_step, result.stopped_early) == (5, 0.9, 3, True)
    assert torch.equal(weights(model), seen[2])
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000003", "step-00000005"]
    assert [line["accuracy"] for line in metrics(tmp_path) if "accuracy" in line] == [0.1, 0.5, 0.9, 0.4, 0.3]
    again = train(classifier(), packed_loader(), steps=30, run_dir=tmp_path, **options)
    assert (again.step, again.best_step) == (5, 3)


def test_the_best_comes_back_without_a_run_directory_too():
    seen = []

    def evaluate(model, accelerator):
        seen.append(weights(model).clone())
        return {"loss": abs(len(seen) - 2)}

    model = classifier()
    options = {"evaluate": evaluate, "evaluate_every": 1, "best_metric": "-loss"}
    assert train(model, packed_loader(), steps=4, **options).best_step == 2
    assert torch.equal(weights(model), seen[1])


def test_any_model_and_optimizer_of_pytorch_will_do(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x, labels):
            return {"loss": (self.linear(x).squeeze(1) - labels).square().mean()}

    def run(steps):
        torch.manual_seed(0)
        model = Plain()
        batches = [{"x": torch.ones(2, 3) * k, "labels": torch.tensor([1.0, 2.0])} for k in range(3)]
        options = {"log_every": 1, "run_dir": tmp_path, "save_every": 1}
        return fit(model, batches, torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9), steps=steps, **options)

    run(3)
    assert run(6).step == 6
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None}, "give steps, epochs or both"),
        ({"steps": 0}, "steps must be at least 1 or None, not 0"),
        ({"best_metric": "f1"}, "best_metric needs evaluate"),
        ({"evaluate": lambda m, a: {"f1": 1.0}, "early_stopping": 1}, "early_stopping needs best_metric"),
        ({"evaluate": lambda m, a: {"f1": 1.0}, "best_metric": "f2"}, "is 'f2', but the evaluation gave f1"),
        ({"gradient_accumulation": 0}, "gradient_accumulation must be at least 1, not 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be above 0 or None, not -1.0"),
        ({"accelerator": Accelerator(), "mixed_precision": "bf16"}, "give mixed_precision to the Accelerator"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        train(classifier(), packed_loader(), **{"steps": 3, **options})


def test_one_process_has_nothing_to_cut_up():
    assert collected(classifier(**NO_DROPOUT), packed_loader(), steps=2, shard=True) == pytest.approx(
        collected(classifier(**NO_DROPOUT), packed_loader(), steps=2)
    )


def test_clipping_twice_is_refused():
    model = classifier()
    optimizer = Lamb(parameter_groups(model, 0.01), max_grad_norm=1.0)
    with pytest.raises(ValueError, match="to fit or to the optimizer, not to both"):
        train(model, packed_loader(), optimizer=optimizer, max_grad_norm=1.0)


def test_a_loader_without_batches_is_an_error():
    with pytest.raises(ValueError, match="the loader gave no batch$"):
        train(classifier(), [])
