"""The scaled_masked_softmax kernels against float64: masks of every kind, dropout, any number of keys."""

import math

import pytest
import torch
from kernel_oracle import DEVICE, DTYPES, randn, run, seed_tensor
from numerics import assert_close_to_truth

pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
from bert_fast import reference  # noqa: E402
from bert_fast.kernels import launch as launch_table  # noqa: E402
from bert_fast.kernels import softmax as kernels  # noqa: E402

SCALE = 0.125


def key_mask(batch, keys, dtype, hidden=None):
    """[B, 1, 1, K]: the last third of each row's keys hidden, and all of the last batch item's if B > 1."""
    mask = torch.zeros(batch, 1, 1, keys)
    value = torch.finfo(dtype).min if hidden is None else hidden
    mask[..., keys - keys // 3 :] = value
    if batch > 1:
        mask[-1] = value
    return mask.to(DEVICE, dtype)


def launch(scores, mask, grads, **dropout):
    dropped, probs = kernels.scaled_masked_softmax_forward(scores, mask, SCALE, **dropout)
    dscores = kernels.scaled_masked_softmax_backward(grads, probs, SCALE, dtype=scores.dtype, **dropout)
    return {"y": dropped, "dscores": dscores}


def wider(mask, dtype):
    """The mask in another dtype, hiding the same keys: its half-minimum rule depends on its dtype."""
    return None if mask is None else mask.to(dtype).masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -math.inf)


def check(found, scores, mask, grads, dtype, **dropout):
    def function(scores, mask):
        return reference.scaled_masked_softmax(scores, mask, SCALE, **dropout)

    truth = run(function, {"scores": scores}, grads, torch.float64, mask=wider(mask, torch.float64))
    eager = run(function, {"scores": scores}, grads, mask=mask)
    for name in found:
        assert found[name].dtype == eager[name].dtype, name
        assert_close_to_truth(found[name], eager[name], truth[name], dtype, name=name)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("masked", [False, True], ids=["no-mask", "mask"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [1, 7, 64, 100, 129, 512])
def test_scaled_masked_softmax(keys, dtype, masked, p):
    scores, grads = randn(3, 2, 5, keys, dtype=dtype, scale=8), randn(3, 2, 5, keys, dtype=dtype)
    mask = key_mask(3, keys, dtype) if masked else None
    dropout = {"p": p, "seed": seed_tensor(), "site": 4}
    found = launch(scores, mask, grads, **dropout)
    check(found, scores, mask, grads, dtype, **dropout)


@pytest.mark.parametrize("shape", [(1, 1, 1, 24), (2, 1, 5, 24), (2, 3, 1, 24), (1, 3, 5, 1), (2, 3, 5, 24)], ids=str)
def test_masks_of_every_broadcast_shape(shape):
    scores, grads, mask = randn(2, 3, 5, 24), randn(2, 3, 5, 24), randn(*shape)
    check(launch(scores, mask, grads), scores, mask, grads, torch.float32)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("keys", [33, 200])
def test_rows_longer_than_the_registers(keys, p, monkeypatch):
    """The two-pass loop, as beyond 16,384 keys: several blocks, the last one partial, blocks with nothing visible."""
    rules = {0: [({}, {"ONE_PASS": 32, "VALUES": 16, "num_warps": 4})]}
    monkeypatch.setitem(launch_table.TABLE, "softmax", rules)
    launch_table._lookup.cache_clear()
    try:
        scores, grads = randn(2, 2, 3, keys, scale=8), randn(2, 2, 3, keys)
        mask = torch.zeros(2, 1, 1, keys, device=DEVICE)
        mask[0, ..., :32] = -math.inf  # the first block of every row
        mask[1] = torch.finfo(torch.float32).min
        dropout = {"p": p, "seed": seed_tensor(), "site": 4}
        check(launch(scores, mask, grads, **dropout), scores, mask, grads, torch.float32, **dropout)
    finally:
        monkeypatch.undo()
        launch_table._lookup.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", ["min", "-inf", "two minima", "half"])
def test_fully_masked_rows_are_zero_and_so_are_their_gradients(dtype, hidden):
    minimum = torch.finfo(dtype).min
    value = {
        "min": minimum,
        "-inf": -math.inf,
        "two minima": (torch.tensor(minimum, dtype=dtype) * 2).item(),
        "half": minimum / 2,
    }[hidden]
    scores, grads = randn(2, 2, 3, 40, dtype=dtype), randn(2, 2, 3, 40, dtype=dtype)
    found = launch(scores, key_mask(2, 40, dtype, value), grads)
    assert not found["y"][-1].any() and not found["dscores"][-1].any()
    assert not found["y"][0, ..., 27:].any(), "hidden keys get exactly nothing"
    torch.testing.assert_close(found["y"][0].float().sum(-1), torch.ones(2, 3, device=DEVICE), rtol=2e-3, atol=0)


def test_minus_infinity_in_the_scores_hides_too():
    scores = randn(1, 1, 3, 16)
    scores[..., 1, :] = -math.inf
    scores[..., 2, :9] = -math.inf
    probs, _ = kernels.scaled_masked_softmax_forward(scores)
    assert torch.isfinite(probs).all()
    assert not probs[0, 0, 1].any() and not probs[0, 0, 2, :9].any()


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_nan_and_inf_under_a_hidden_key_never_leak(value):
    scores, grads, mask = randn(2, 2, 3, 40), randn(2, 2, 3, 40), key_mask(2, 40, torch.float32)
    clean = launch(scores, mask, grads)
    found = launch(torch.where(mask < 0, value, scores), mask, grads)
    for name in clean:
        assert torch.equal(found[name], clean[name]), name


def test_a_visible_nan_is_not_hidden():
    scores = randn(1, 1, 2, 16)
    scores[0, 0, 0, 3] = math.nan
    probs, _ = kernels.scaled_masked_softmax_forward(scores)
    assert probs[0, 0, 0].isnan().all()
    assert torch.isfinite(probs[0, 0, 1]).all()


def test_googles_mask_of_minus_10000_is_a_number_not_a_mask():
    scores, mask = randn(1, 1, 2, 16), torch.full((1, 1, 1, 16), -10000.0, device=DEVICE)
    probs, _ = kernels.scaled_masked_softmax_forward(scores, mask)
    torch.testing.assert_close(probs.sum(-1), torch.ones(1, 1, 2, device=DEVICE))


def test_float32_mask_makes_a_float32_result():
    scores, grads, mask = randn(2, 2, 3, 40, dtype=torch.float16), randn(2, 2, 3, 40), key_mask(2, 40, torch.float32)
    found = launch(scores, mask, grads)
    assert (found["y"].dtype, found["dscores"].dtype) == (torch.float32, torch.float16)
    dtypes = {"y": torch.float32, "dscores": torch.float16}
    function = lambda scores, mask: reference.scaled_masked_softmax(scores, mask, SCALE)  # noqa: E731
    truth = run(function, {"scores": scores}, grads, torch.float64, mask=wider(mask, torch.float64))
    eager = run(function, {"scores": scores}, grads, mask=mask)
    for name in found:
        assert_close_to_truth(found[name], eager[name], truth[name], dtypes[name], name=name)


def test_permuted_and_broadcast_inputs():
    mask = key_mask(2, 24, torch.float32)
    for scores in (
        randn(2, 5, 3, 24).transpose(1, 2),
        randn(3, 2, 5, 48).transpose(0, 1)[..., 12:36],
        randn(2, 3, 24, 5).transpose(2, 3),
        randn(2, 1, 5, 24).expand(2, 3, 5, 24),
    ):
        grads = randn(1, 1, 1, 1).expand(2, 3, 5, 24)
        found = launch(scores, mask, grads)
        expected = launch(scores.contiguous(), mask, grads.contiguous())
        for name in expected:
            assert torch.equal(found[name], expected[name]), name
        check(found, scores, mask, grads, torch.float32)


@pytest.mark.parametrize("keys", [32, 36, 33])
def test_dropout_is_the_references_philox_forward_and_backward(keys):
    """e = row * 65536 + key, whatever the number of keys, so that padding more or less moves no mask."""
    scores, grads = randn(2, 3, 4, keys), randn(2, 3, 4, keys)
    dropout = {"p": 0.4, "seed": seed_tensor(5), "site": 9}
    index = torch.arange(24).view(2, 3, 4, 1) * 65536 + torch.arange(keys)
    keep = reference.dropout_keep(dropout["seed"].cpu(), 9, 0.4, index).to(DEVICE)
    dropped, probs = kernels.scaled_masked_softmax_forward(scores, **dropout)
    assert torch.equal(dropped != 0, keep)
    torch.testing.assert_close(dropped, torch.where(keep, probs / 0.6, 0.0), rtol=1e-6, atol=0)
    # with the probabilities out of the way, the gradient's mask shows: d = P (keep g / (1 - p) - sum)
    dscores = kernels.scaled_masked_softmax_backward(grads, probs, **dropout)
    reached = torch.where(keep, grads / 0.6, 0.0)
    expected = probs * (reached - (probs * reached).sum(-1, keepdim=True))
    torch.testing.assert_close(dscores, expected, rtol=1e-4, atol=1e-6)


def test_without_dropout_the_output_is_what_is_saved():
    dropped, probs = kernels.scaled_masked_softmax_forward(randn(1, 2, 3, 16))
    assert dropped is probs


def test_empty_inputs_launch_nothing(monkeypatch):
    monkeypatch.setattr(kernels, "_forward_kernel", None)
    monkeypatch.setattr(kernels, "_backward_kernel", None)
    for shape in ((0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)):
        found = launch(randn(*shape), None, randn(*shape))
        assert found["y"].shape == found["dscores"].shape == shape


def test_bad_arguments_are_named():
    scores = randn(2, 3, 4, 8)
    with pytest.raises(ValueError, match=r"scores must be \[B, N, Q, K\]"):
        kernels.scaled_masked_softmax_forward(scores[0])
    for mask in (randn(2, 1, 1, 7), randn(8), randn(3, 1, 1, 8)):
        with pytest.raises(ValueError, match=r"mask must broadcast to scores \(2, 3, 4, 8\)"):
            kernels.scaled_masked_softmax_forward(scores, mask)
    with pytest.raises(ValueError, match="seed must be an int64 tensor"):
        kernels.scaled_masked_softmax_forward(scores, p=0.1)
    with pytest.raises(ValueError, match="dropout numbers at most 65536 keys a row"):
        kernels.scaled_masked_softmax_forward(randn(1, 1, 1, 65537), p=0.1, seed=seed_tensor())
    with pytest.raises(TypeError, match="mask must be float32"):
        kernels.scaled_masked_softmax_forward(scores, torch.ones(2, 1, 1, 8, dtype=torch.bool, device=DEVICE))
    with pytest.raises(ValueError, match="grads must have the shape of probs"):
        kernels.scaled_masked_softmax_backward(scores, scores[..., :4])


@pytest.mark.gpu
@pytest.mark.parametrize("keys", [512, 20000])
def test_a_large_batch(keys):
    heads = 12 if keys == 512 else 1
    scores, grads = (randn(8, heads, 512, keys, dtype=torch.bfloat16) for _ in range(2))
    mask = key_mask(8, keys, torch.bfloat16)
    dropout = {"p": 0.1, "seed": seed_tensor(), "site": 4}
    check(launch(scores, mask, grads, **dropout), scores, mask, grads, torch.bfloat16, **dropout)
