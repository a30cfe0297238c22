"""Cross-entropy over rows of logits."""

import pytest
import torch
import torch.nn.functional as F

from bert_fast import ops


@pytest.mark.parametrize("labels", ["all", "some_ignored", "one", "int32"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_pytorchs_mean_with_its_gradient(dtype, labels):
    logits = torch.randn(30, 7, dtype=torch.float64).to(dtype)
    target = torch.randint(0, 7, (30,))
    if labels == "some_ignored":
        target[::2] = -100
    if labels == "one":
        target[1:] = -100
    results = []
    for function, kind in ((ops.cross_entropy, dtype), (F.cross_entropy, torch.float64)):
        leaf = logits.to(kind, copy=True).requires_grad_()
        loss = function(leaf, target.int() if labels == "int32" and function is ops.cross_entropy else target)
        loss.backward()
        results.append((loss, leaf.grad))
    (got, grad), (want, exact) = results
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    assert torch.allclose(got.double(), want, rtol=tolerance)
    assert torch.allclose(grad.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows", [0, 5])
def test_all_ignored_gives_0_with_zero_gradients(rows):
    logits = torch.randn(rows, 7, requires_grad=True)
    loss = ops.cross_entropy(logits, torch.full((rows,), -100))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_another_ignored_index():
    logits, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 4, 4])
    assert torch.allclose(ops.cross_entropy(logits, target, 4), F.cross_entropy(logits[:4], target[:4]))


def test_a_label_that_is_no_class_is_an_error():
    with pytest.raises(IndexError, match=r"labels hold 3, but there are 3 classes \(0 to 2\), and -100 is ignored"):
        ops.cross_entropy(torch.randn(2, 3), torch.tensor([0, 3]))


def test_large_logits_and_many_float16_rows_do_not_overflow():
    logits = torch.full((9000, 3), -30000.0, dtype=torch.float16)
    logits[:, 0] = 30000.0
    loss = ops.cross_entropy(logits, torch.zeros(9000, dtype=torch.long))
    assert loss == 0
    assert ops.cross_entropy(logits / 1000, torch.ones(9000, dtype=torch.long)) == 60


def test_labels_on_another_device_are_named():
    """A kernel would follow their address."""
    labels = torch.zeros(4, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="labels are on meta, but the rows they belong to on cpu"):
        ops.cross_entropy(torch.randn(4, 5), labels)
    with pytest.raises(ValueError, match="labels are on meta, but the rows they belong to on cpu"):
        ops.linear_cross_entropy(torch.randn(4, 3), torch.randn(5, 3), None, labels)


@pytest.mark.parametrize("labels", [torch.tensor([0.0, 1.7, 2.0, 4.0]), torch.full((4, 5), 0.2)], ids=["1d", "2d"])
def test_labels_that_are_no_integers_are_refused(labels):
    """PyTorch refuses them as classes, too; as probabilities, which it takes, they are not done here."""
    for loss in (
        lambda: ops.cross_entropy(torch.randn(4, 5), labels),
        lambda: ops.linear_cross_entropy(torch.randn(4, 3), torch.randn(5, 3), None, labels),
    ):
        with pytest.raises(TypeError, match=r"labels must be integers, one class per row, not torch.float32"):
            loss()
