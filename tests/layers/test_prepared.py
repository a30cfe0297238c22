"""Layers without their modules: the same bits, and only where no module has to be called."""

import pytest
import torch
from torch import nn

from bert_fast import BertConfig
from bert_fast.layers import BertEncoder
from bert_fast.layers.prepared import PreparedLayer
from bert_fast.layers.states import HiddenStates
from bert_fast.ops.linear import pinned_cpu_linear
from bert_fast.packing import Layout

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN here")


@pytest.fixture(autouse=True)
def packed():
    with pinned_cpu_linear(torch.float32, (True, torch.float32)):
        yield


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 64}
    return BertEncoder(BertConfig(**sizes)).eval()


def rows(lengths=(700, 5, 0, 600, 30)):
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return torch.randn(int(bounds[-1]), 32, generator=torch.Generator().manual_seed(1)), Layout(bounds, max(lengths))


def prepared(layer):
    with torch.no_grad():
        return layer.prepared(torch.empty(0, 32))


class _Called(nn.Linear):
    pass


def test_the_bits_are_those_of_the_modules(encoder, monkeypatch):
    x, layout = rows()
    assert all(isinstance(prepared(layer), PreparedLayer) for layer in encoder.layer)
    with torch.no_grad():
        states, others = HiddenStates(layout), HiddenStates(layout)
        got = encoder(x, layout, hidden_states=states)
        monkeypatch.setattr(type(encoder.layer[0]), "prepared", lambda self, x: None)
        want = encoder(x, layout, hidden_states=others)
    assert torch.equal(got, want)
    assert all(map(torch.equal, states.states, others.states)) and len(states.states) == len(others.states) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer.attention.self, "key", _Called(32, 32)),
        lambda layer: setattr(layer.intermediate, "dense", _Called(32, 64)),
        lambda layer: setattr(layer, "attention", nn.Identity()),
        lambda layer: setattr(layer, "intermediate", nn.Identity()),
        lambda layer: setattr(layer.output, "LayerNorm", nn.Identity()),
        lambda layer: setattr(layer.output, "dropout", nn.Dropout(0.5)),
        lambda layer: setattr(layer.intermediate, "hidden_act", "relu"),
        lambda layer: layer.attention.self.train(),
        lambda layer: layer.output.dropout.train(),
        lambda layer: layer.output.dense.double(),
        lambda layer: layer.intermediate.register_forward_hook(lambda *_: None),
        lambda layer: layer.attention.output.dense.register_forward_pre_hook(lambda *_: None),
        lambda layer: setattr(layer, "forward", lambda *_: None),
        lambda layer: nn.utils.parametrizations.weight_norm(layer.attention.self.query),
    ],
)
def test_what_has_to_be_called_is_not_left_out(encoder, change):
    change(encoder.layer[1])
    assert prepared(encoder.layer[1]) is None
    assert prepared(encoder.layer[0]) is not None


def test_a_changed_weight_is_seen(encoder):
    x, layout = rows((40,))
    with torch.no_grad():
        before = encoder(x, layout)
        encoder.layer[2].output.LayerNorm.weight.mul_(2)
        encoder.layer[0].output.dense.weight.mul_(2)
        after = encoder(x, layout)
        encoder.layer[1].output.LayerNorm.train()  # a module that is in training without dropout may be left out
        torch.testing.assert_close(encoder(x, layout), after, rtol=0, atol=0)
    assert not torch.allclose(before, after)


def test_a_hook_sees_the_batch_once(encoder):
    x, layout = rows()
    seen = []
    encoder.layer[0].intermediate.register_forward_hook(lambda module, args, output: seen.append(output.shape[0]))
    with torch.no_grad():
        encoder(x, layout)
    assert seen == [x.shape[0]]
