"""Gradients at hidden states and attentions: what is returned is what the next layer reads, as in transformers."""

import pytest
import torch
from numerics import assert_close_to_truth
from twins import CLASSES, TINY, S, batch, double, labels_of, ours, padding, shaped, twins

import bert_fast

ASKED = {"output_hidden_states": True, "output_attentions": True}
STATES = {"output_hidden_states": True}


def loss_of(output, mask):
    """Of logits, or of the visible places and the pooled output of an encoder by itself."""
    if "loss" in output:
        return output.loss
    x = output.last_hidden_state
    weighted = x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).sin().view_as(x)
    return weighted[mask.bool()].sum() + output.pooler_output.square().sum()


def gradients_at(model, name, mask, **options):
    """Those at every hidden state and attention, by name, and at every parameter."""
    output = model(**shaped(name, {**batch(mask), **labels_of(name)}), **options)
    parts = {key: output[key] for key in ("hidden_states", "attentions") if key in output}
    loss = loss_of(output, mask)
    asked = {key: torch.autograd.grad(loss, values, retain_graph=True) for key, values in parts.items()}
    for values in parts.values():
        for value in values:
            value.retain_grad()
    loss.backward()
    found = {key: tuple(value.grad for value in values) for key, values in parts.items()}
    for key in found:
        assert all(map(torch.equal, found[key], asked[key]))
    return found, [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def check(got, eager, truth, read=None):
    for key, values in truth.items():
        assert len(got[key]) == len(values)
        for index, grads in enumerate(zip(got[key], eager[key], values, strict=True)):
            shown = grads if read is None or key == "attentions" else [grad[read] for grad in grads]
            assert shown[2].abs().max() > 0
            assert_close_to_truth(*shown, torch.float32, TINY["intermediate_size"], f"gradient at {key} {index}")


@pytest.mark.parametrize("hidden", ["zero", "exact"])
@pytest.mark.parametrize("padded", ["right", "left", "holes"])
@pytest.mark.parametrize("name", CLASSES)
def test_gradients_at_hidden_states_are_those_of_transformers(name, padded, hidden):
    """Everywhere under "exact"; under "zero" at visible places, of whatever is read: labels and first places too."""
    mine, theirs = twins(name)
    mask = padding(padded)
    got, _ = gradients_at(mine, name, mask, **STATES, hidden_positions=hidden)
    (eager, _), (truth, _) = (gradients_at(model, name, mask, **STATES) for model in (theirs, double(theirs)))
    question = name == "BertForQuestionAnswering"
    if question and hidden == "zero":  # the softmax is another one
        assert all(grad.abs().max() > 0 for grad in got["hidden_states"])
    else:
        check(got, eager, truth, None if hidden == "exact" else mask.bool())
    if hidden == "zero":
        assert all((grad[mask == 0] == 0).all() for grad in got["hidden_states"])


@pytest.mark.parametrize("padded", ["no_padding", "holes"])
@pytest.mark.parametrize("name", ["BertModel", "BertForTokenClassification"])
def test_gradients_at_attentions_are_those_of_transformers(name, padded):
    mine, theirs = twins(name, attention="eager")
    mask = padding(padded)
    got, _ = gradients_at(mine, name, mask, **ASKED, hidden_positions="exact")
    (eager, _), (truth, _) = (gradients_at(model, name, mask, **ASKED) for model in (theirs, double(theirs)))
    check(got, eager, truth)


@pytest.mark.parametrize("padded", ["no_padding", "left", "holes"])
@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_asking_for_states_moves_no_bit_of_a_gradient(name, padded):
    mask = padding(padded)
    (_, plain), (_, asked) = (gradients_at(ours(name), name, mask, **options) for options in ({}, STATES))
    for left, right in zip(plain, asked, strict=True):
        assert (left is None and right is None) or torch.equal(left, right)


def test_the_last_state_is_what_is_read_and_returned():
    output = ours()(**batch(padding("left")), **STATES)
    assert output.hidden_states[-1] is output.last_hidden_state
    (grad,) = torch.autograd.grad(output.pooler_output.sum(), output.last_hidden_state)
    first = padding("left")[:, 0].bool()
    assert (grad[first, 0] != 0).any(-1).all()
    assert (grad[:, 1:] == 0).all() and (grad[~first] == 0).all()


def test_under_gradient_checkpointing():
    found = []
    for enabled in (False, True):
        model = ours().train()
        if enabled:
            model.gradient_checkpointing_enable()
        found.append(gradients_at(model, "BertModel", padding("holes"), **STATES))
    (plain, parameters), (recomputed, others) = found
    for left, right in zip(plain["hidden_states"], recomputed["hidden_states"], strict=True):
        assert torch.equal(left, right)
    assert all(map(torch.equal, parameters, others))


def test_packed_input_has_them_too():
    model, mask = ours(), padding("right")
    rows = [ids[: int(n)].tolist() for ids, n in zip(batch()["input_ids"], mask.sum(1), strict=True)]
    given = bert_fast.PackedBatch.from_sequences(rows)
    packed, padded = model(given, **STATES), model(batch()["input_ids"], mask, **STATES)
    grads = []
    for output in (packed, padded):
        for state in output.hidden_states:
            state.retain_grad()
        output.pooler_output.square().sum().backward()
        grads.append([state.grad for state in output.hidden_states])
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right[mask.bool()], rtol=1e-4, atol=1e-4)


def test_a_batch_without_any_token_has_every_state():
    for settings in ({}, {"batch_invariant": True}):
        model = ours("BertForTokenClassification", **settings).bert
        with torch.no_grad():
            output = model(**batch(padding("all_rows_masked")), **STATES)
        assert [state.shape for state in output.hidden_states] == [output[0].shape] * (TINY["num_hidden_layers"] + 1)


def test_retain_grad_as_transformers_tests_it():
    output = ours(output_hidden_states=True, output_attentions=True)(**batch())
    output.hidden_states[0].retain_grad()
    output.attentions[0].retain_grad()
    output[0].flatten()[0].backward(retain_graph=True)
    assert output.hidden_states[0].grad.shape[1] == S
    assert output.attentions[0].grad is not None
