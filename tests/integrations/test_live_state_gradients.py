"""Gradients at the hidden states of accelerated models: saliency, layer-wise attribution, hooks on what is returned.

In transformers ``hidden_states[k]`` is the tensor that the next layer reads, so that a gradient can be retained at it.
"""

import warnings

import pytest
import torch
import transformers
from integrations.families import CLASSES, FAMILIES, batch, encoder_of, every_kind_of_padding, labels, model
from integrations.test_live_parity import MASKS, check, forward, gradients

import bert_fast
from bert_fast.layers.states import HiddenStates
from bert_fast.packing import Layout

ENDS = ("Model", "ForTokenClassification", "ForSequenceClassification", "ForQuestionAnswering")
NAMES = [name for name in CLASSES if name.endswith(ENDS)]
MODELS = [family + "Model" for family in FAMILIES]


def loss_of(output):
    """Of what a user trains on alone: no hidden state is in it by itself."""
    if output.get("loss") is not None:
        return output.loss
    x = output.last_hidden_state
    total = (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).sin().view_as(x)).sum()
    pooled = output.get("pooler_output")
    return total if pooled is None else total + pooled.square().sum()


def retained(net, name, mask, dtype=torch.float32):
    """The gradients at all hidden states, and at all parameters."""
    output = forward(net, name, mask, output_hidden_states=True)
    states, loss = output.hidden_states, loss_of(output)
    asked = torch.autograd.grad(loss, states, retain_graph=True)
    for state in states:
        state.retain_grad()
    loss.backward()
    found = [state.grad for state in states]
    assert all(map(torch.equal, asked, found))
    assert all(grad.shape == state.shape and grad.dtype == dtype for grad, state in zip(found, states, strict=True))
    return {"states": tuple(found)}, gradients(net)


def compare(name, mask, change=lambda net: net, **settings):
    eager, eager_grads = retained(change(model(name, **settings)), name, mask)
    truth, truth_grads = retained(change(model(name, **settings).double()), name, mask, torch.float64)
    net = change(bert_fast.accelerate(model(name, **settings)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, grads = retained(net, name, mask)
    assert all(grad.abs().max() > 0 for grad in truth["states"])
    check(got, eager, truth, torch.float32, name)
    check(grads, eager_grads, truth_grads, torch.float32, f"{name} gradient of")
    assert encoder_of(net).accelerated == 1 and not encoder_of(net).reasons


@pytest.mark.parametrize("name, mask", [*((n, "every_kind") for n in NAMES), *((n, "no_mask") for n in MODELS)])
def test_gradients_at_every_hidden_state_and_place(name, mask):
    compare(name, MASKS[mask]())


def checkpointed(net):
    net.gradient_checkpointing_enable({"use_reentrant": False})
    return net.train()


@pytest.mark.parametrize("name", [name for name in MODELS if name in ("BertModel", "ModernBertModel")])
def test_under_gradient_checkpointing(name):
    compare(name, every_kind_of_padding(), checkpointed)


def test_albert_groups_of_several_layers():
    if transformers.__version__.startswith("4."):
        pytest.skip("transformers 4 counts such hidden states by groups, and runs its own code")
    compare("AlbertModel", every_kind_of_padding(), inner_group_num=2)


@pytest.mark.parametrize("name", MODELS)
def test_zero_reads_gradients_at_visible_places(name):
    """Asked for zeros at hidden places, gradients at all others are those of the model that computes every place."""
    mask = every_kind_of_padding()
    mask[2:4, 0] = 1  # the first place is read, hidden or not
    read = mask.bool()
    found = []
    for positions in ("exact", "zero"):
        net = bert_fast.accelerate(model(name), hidden_positions=positions)
        output = net(**batch(name, mask), output_hidden_states=True)
        for state in output.hidden_states:
            state.retain_grad()
        x = output.last_hidden_state
        (x * torch.linspace(-1, 1, x.numel()).view_as(x))[read].sum().backward()
        found.append([state.grad for state in output.hidden_states])
    for exact, zero in zip(*found, strict=True):
        torch.testing.assert_close(zero[read], exact[read], rtol=1e-4, atol=1e-4)
        assert (zero[~read] == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_asking_for_states_moves_no_bit_of_a_gradient(name):
    net, runs = bert_fast.accelerate(model(name), hidden_positions="exact"), []
    for asked in (False, True):
        net.zero_grad()
        output = net(**batch(name, every_kind_of_padding()), output_hidden_states=asked)
        loss_of(output).backward()
        runs.append([output.last_hidden_state, *gradients(net).values()])
    assert all(map(torch.equal, *runs))
    assert output.hidden_states[-1] is output.last_hidden_state


def test_a_hook_on_a_state_changes_the_gradients_below_it():
    name = "BertForTokenClassification"
    results = []
    for net in (model(name), bert_fast.accelerate(model(name))):
        output = forward(net, name, every_kind_of_padding(), output_hidden_states=True)
        output.hidden_states[1].register_hook(lambda grad: 3 * grad)
        output.loss.backward()
        results.append(gradients(net))
    for key, want in results[0].items():
        torch.testing.assert_close(results[1][key], want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if name in ("BertModel", "ModernBertModel")])
def test_under_autocast(name):
    def found(net, dtype=torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float64):
            output = net(**batch(name, every_kind_of_padding()), output_hidden_states=True)
        for state in output.hidden_states:
            state.retain_grad()
        loss_of(output).backward()
        return {"states": tuple(state.grad for state in output.hidden_states)}

    eager, truth = found(model(name)), found(model(name).double(), torch.float64)
    check(found(bert_fast.accelerate(model(name))), eager, truth, torch.bfloat16, name)


@pytest.mark.parametrize("name", [name for name in MODELS if name in ("BertModel", "DistilBertModel")])
def test_retain_grad_of_hidden_states_and_attentions_as_transformers_tests_it(name):
    net = bert_fast.accelerate(model(name, attn_implementation="eager"))
    with pytest.warns(RuntimeWarning, match="output_attentions are asked for"):
        output = net(**batch(name), output_hidden_states=True, output_attentions=True)
    output.hidden_states[0].retain_grad()
    output.attentions[0].retain_grad()
    output[0].flatten()[0].backward(retain_graph=True)
    assert output.hidden_states[0].grad is not None
    assert output.attentions[0].grad is not None


def test_inference_unpacks_each_state_once_and_packs_none_again(monkeypatch):
    name = "BertForTokenClassification"
    given = {**batch(name, every_kind_of_padding()), **labels(name)}
    net = bert_fast.accelerate(model(name), hidden_positions="zero")
    counts = dict.fromkeys(("pack", "unpack", "keep"), 0)

    def count(owner, key):
        function = getattr(owner, key)

        def counted(self, x):
            layout = self if isinstance(self, Layout) else self.layout
            counts[key] += layout.padded_shape is not None  # parts of a batch are packed, and copy nothing
            return function(self, x)

        monkeypatch.setattr(owner, key, counted)

    count(Layout, "pack")
    count(Layout, "unpack")
    count(HiddenStates, "keep")
    with torch.no_grad():
        net(**given)
        packed = counts["pack"]
        assert counts == {"pack": packed, "unpack": 1, "keep": 0}
        output = net(**given, output_hidden_states=True)
    layers = net.config.num_hidden_layers
    assert len(output.hidden_states) == layers + 1
    assert counts == {"pack": 2 * packed, "unpack": 1 + layers + 1, "keep": layers}
