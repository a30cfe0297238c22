"""Weighted losses against PyTorch's, and balanced weights against scikit-learn's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from training.tasks import generated

from bert_fast.training import finetune
from bert_fast.training.finetuning.class_weights import WeightedLoss, weights_of


class Logits(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, input_ids):
        return {"logits": self.logits}


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_the_weighted_mean_and_its_count(shape):
    weights = [0.5, 2.0, 7.0]
    labels = torch.tensor([0, 1, 2, -100, 1, 0]).view(shape)
    model = Logits(torch.randn(*shape, 3))
    loss = WeightedLoss(weights)
    batch = {"input_ids": None, "labels": labels}
    got = loss(model, batch)["labels"]
    wanted = F.cross_entropy(model.logits.view(-1, 3), labels.flatten(), torch.tensor(weights), ignore_index=-100)
    torch.testing.assert_close(got, wanted)
    assert loss.counts(batch) == {"labels": 0.5 + 2 + 7 + 2 + 0.5}
    (gradient,) = torch.autograd.grad(got, model.logits)
    (expected,) = torch.autograd.grad(wanted, model.logits)
    torch.testing.assert_close(gradient, expected)


def test_no_label_at_all_is_a_loss_of_zero():
    loss = WeightedLoss([1.0, 2.0])
    batch = {"input_ids": None, "labels": torch.tensor([-100, -100])}
    assert loss(Logits(torch.randn(2, 2)), batch)["labels"] == 0
    assert loss.counts(batch) == {"labels": 0}


def test_balanced_weights():
    labels = np.array([0, 0, 0, 1, 2, 2, 0])
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert weights_of("balanced", "abc", labels.tolist()) == pytest.approx(wanted.tolist())
    words = [np.array([-100, 0, 0, -100]), np.array([0, 1, 2, 2, 0])]
    assert weights_of("balanced", "abc", words) == pytest.approx(wanted.tolist())
    with pytest.raises(ValueError, match="no row is labelled 'c'"):
        weights_of("balanced", "abc", [0, 1])


def test_weights_by_name_and_in_order():
    assert weights_of({"b": 3}, ["a", "b"], []) == [1.0, 3.0]
    assert weights_of([2, 1], ["a", "b"], []) == [2.0, 1.0]
    for wrong in ([1.0], [1.0, 0.0], {"b": float("nan")}):
        with pytest.raises(ValueError, match="must be 2 numbers above 0"):
            weights_of(wrong, ["a", "b"], [])


def test_a_weight_shifts_what_is_predicted(tmp_path):
    """Of texts that say nothing, a model learns how often each label is; a weight of 9 turns 1 in 4 into the rule."""
    base = generated.checkpoint(tmp_path / "base")
    rows = [{"text": "the film", "label": "rare" if n % 4 == 0 else "common"} for n in range(32)]
    options = {"epochs": 6, "batch_size": 8, "learning_rate": 2e-2}
    plain = finetune("classification", base, rows, **options)
    weighted = finetune("classification", base, rows, class_weights={"rare": 9.0}, **options)
    assert next(plain.predict(rows))["label"] == "common"
    assert next(weighted.predict(rows))["label"] == "rare"
    with pytest.raises(ValueError, match="not for the task 'regression'"):
        finetune("regression", base, list(generated.regression(4)), class_weights="balanced")
