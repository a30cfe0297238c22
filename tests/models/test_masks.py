"""Masks of 2, 3 and 4 dimensions, of every dtype, against transformers and against each other."""

import math

import pytest
import torch
from numerics import assert_close_to_truth
from twins import TINY, B, S, batch, double, ours, padding, twins

N = TINY["num_attention_heads"]
LOWEST = torch.finfo(torch.float32).min


def square(heads, seed=5):
    """bool ``[B, heads, S, S]``: random, but every query sees itself."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(B, heads, S, S, generator=generator) < 0.5) | torch.eye(S, dtype=torch.bool)


def additive(mask, hidden):
    return torch.zeros(mask.shape).masked_fill(~mask, hidden)


def check_against_transformers(mask, theirs_mask=None, **options):
    mine, theirs = twins()
    arguments = batch()
    with torch.no_grad():
        eager = theirs(**arguments, attention_mask=mask if theirs_mask is None else theirs_mask)
        truth_mask = mask if theirs_mask is None else theirs_mask
        truth_mask = truth_mask.double() if truth_mask.is_floating_point() else truth_mask
        truth = double(theirs)(**arguments, attention_mask=truth_mask)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            output = mine(**arguments, attention_mask=mask, **options)
        for got, want, exact in zip(output.to_tuple(), eager.to_tuple(), truth.to_tuple(), strict=True):
            assert_close_to_truth(got, want, exact, torch.float32, S)
    return output


@pytest.mark.parametrize("heads", [1, N], ids=["shared_by_heads", "per_head"])
@pytest.mark.parametrize("kind", ["bool", "additive_inf", "additive_min"])
def test_4d(kind, heads):
    mask = square(heads)
    values = {"additive_inf": -math.inf, "additive_min": LOWEST}
    check_against_transformers(mask if kind == "bool" else additive(mask, values[kind]))


def test_adding_two_finfo_min_masks_overflows_to_inf_and_still_agrees():
    mask = square(1)
    both = additive(mask, LOWEST) + additive(square(1, seed=6), LOWEST)
    assert both.min() == -math.inf
    output = ours()(**batch(), attention_mask=both)
    visible = ours()(**batch(), attention_mask=mask & square(1, seed=6))
    assert torch.equal(output[0], visible[0])


@pytest.mark.parametrize("heads", [1, N], ids=["shared_by_heads", "per_head"])
def test_4d_finite_scores_are_added(heads):
    generator = torch.Generator().manual_seed(3)
    check_against_transformers(torch.randn(B, heads, S, S, generator=generator))


def test_4d_broadcast_over_the_batch():
    mask = square(1)[:1]
    check_against_transformers(mask, mask.expand(B, -1, -1, -1))


@pytest.mark.parametrize("kind", ["bool", "additive_min"])
def test_4d_broadcast_over_queries_as_an_extended_mask_is(kind):
    mask = padding("holes").bool()[:, None, None]
    output = check_against_transformers(mask if kind == "bool" else additive(mask, LOWEST))
    visible = padding("holes").bool()
    two_dimensional = ours()(**batch(), attention_mask=visible)
    assert (output[0] - two_dimensional[0])[visible].abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8], ids=str)
def test_3d(dtype):
    mask = square(1)[:, 0]
    check_against_transformers(mask.to(dtype), mask[:, None])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8], ids=str)
def test_4d_integers_are_nonzero_where_visible(dtype):
    mask = square(N)
    check_against_transformers(mask.to(dtype) * 3, mask)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32, torch.float16], ids=str
)
@pytest.mark.parametrize("padded", ["right", "left", "holes"])
def test_2d_of_every_dtype_is_the_same_mask(padded, dtype):
    model, mask = ours(), padding(padded)
    expected = model(**batch(mask))
    output = model(**batch(mask.to(dtype)))
    assert torch.equal(output[0], expected[0])
    assert torch.equal(output[1], expected[1])


def test_2d_weights_other_than_one_are_visible():
    model, mask = ours(), padding("holes")
    assert torch.equal(model(**batch(mask * 7))[0], model(**batch(mask))[0])


@pytest.mark.parametrize("attentions", [False, True], ids=["attention", "with_probabilities"])
def test_rows_of_a_4d_mask_that_see_nothing_get_0_however_they_are_hidden(attentions):
    """The dtype's minimum hides as -inf does: also where every key of a row has it, and the softmax would be even."""
    mask = square(1)
    mask[1] = False
    mask[0, :, 3] = False
    outputs = [
        ours()(**batch(), attention_mask=given, output_attentions=attentions)[0]
        for given in (mask, additive(mask, -math.inf), additive(mask, LOWEST))
    ]
    assert torch.equal(outputs[1], outputs[0])
    assert torch.equal(outputs[2], outputs[0])


@pytest.mark.parametrize("hidden", [-math.inf, LOWEST], ids=["inf", "min"])
@pytest.mark.parametrize("attentions", [False, True], ids=["attention", "with_probabilities"])
def test_rows_of_a_4d_mask_that_see_nothing_are_finite_and_get_finite_gradients(hidden, attentions):
    mask = square(1)
    mask[1] = False
    mask[0, :, 3] = False
    model = ours().train()
    output = model(**batch(), attention_mask=additive(mask, hidden), output_attentions=attentions)
    output[0].square().sum().backward()
    assert output[0].isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    if attentions:
        assert (output.attentions[0][1] == 0).all()
        assert (output.attentions[0][0, :, 3] == 0).all()


def test_a_learned_additive_mask_gets_its_gradient():
    mine, theirs = twins()
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(B, N, S, S, generator=generator)
    grads = []
    for model, dtype in ((mine, torch.float32), (theirs, torch.float32), (double(theirs), torch.float64)):
        learned = scores.to(dtype, copy=True).requires_grad_()
        output = model(**batch(), attention_mask=learned)
        (output[0] * torch.linspace(-1, 1, 48, dtype=dtype)).sum().backward()
        grads.append(learned.grad)
    assert_close_to_truth(*grads, torch.float32, S)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_4d_in_16_bits(dtype):
    mine, theirs = twins(dtype=dtype)
    mask = square(N)
    lowest = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    with torch.no_grad():
        eager, truth = theirs(**batch(), attention_mask=mask), double(theirs)(**batch(), attention_mask=mask)
        for given in (mask, lowest, additive(mask, LOWEST), additive(mask, -math.inf)):
            output = mine(**batch(), attention_mask=given)
            assert_close_to_truth(output[0], eager[0], truth[0], dtype)


BAD = {
    "2d_of_another_length": ((B, S - 1), "attention_mask must be"),
    "2d_of_another_batch": ((B + 1, S), "attention_mask must be"),
    "1d": ((S,), "attention_mask must be"),
    "5d": ((B, 1, 1, S, S), "attention_mask must be"),
    "3d_of_another_length": ((B, S, S - 1), "attention_mask of 3 or 4 dimensions must"),
    "4d_of_another_batch": ((B - 1, 1, S, S), "attention_mask of 3 or 4 dimensions must"),
    "4d_of_another_number_of_heads": ((B, N - 1, S, S), "attention_mask of 3 or 4 dimensions must"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mask_of_the_wrong_shape_is_named_with_its_shape(case):
    shape, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        ours()(**batch(), attention_mask=torch.ones(shape, dtype=torch.bool))
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("dims", [3, 4])
def test_a_float_mask_of_zeros_and_ones_is_refused_where_it_would_be_added(dims):
    mask = square(1).float()
    with pytest.raises(ValueError, match="attention_mask .* holds 0 and 1"):
        ours()(**batch(), attention_mask=mask if dims == 4 else mask[:, 0])
