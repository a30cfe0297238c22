"""quantization="int8": an encoder whose products are of bytes, where they can be."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from twins import randomize

import bert_fast
from bert_fast.config import BertConfig
from bert_fast.layers import quantized
from bert_fast.ops.quantized import int8_reasons

needs_int8 = pytest.mark.skipif(bool(int8_reasons()), reason=f"int8 cannot run here: {'; '.join(int8_reasons())}")
SIZES = {
    "minilm": {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12},
    "odd": {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3},
}
LENGTHS = [40, 1, 2, 3, 7, 31, 64, 65, 5]


def model(size="minilm", quantization="int8", dtype=torch.float32, **changes):
    settings = {**SIZES[size], "vocab_size": 90, "num_hidden_layers": 2, "quantization": quantization, **changes}
    torch.manual_seed(0)
    return randomize(bert_fast.BertModel(BertConfig(**settings))).to(dtype).eval()


def batch(lengths=LENGTHS):
    ids = torch.randint(1, 90, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def rounded(x, levels, lowest):
    """x in float64 at the nearest of ``levels`` steps from each row's least (or 0) to its largest value."""
    least = x.amin(-1, keepdim=True) if lowest is None else torch.zeros_like(x[..., :1])
    step = ((x.amax(-1, keepdim=True) - least) if lowest is None else x.abs().amax(-1, keepdim=True)) / levels
    return ((x - least) / step).round() * step + least


class Rounding(nn.Linear):
    """A linear layer that rounds its input and its weight as int8 does, in float64."""

    def forward(self, x):
        return F.linear(rounded(x, 255, None), rounded(self.weight, 127, 0), self.bias)


def as_int8_rounds(net):
    """``net`` in float64, with every value at which int8 rounds rounded."""
    net = copy.deepcopy(net).double()
    net.config.quantization = None
    for layer in net.encoder.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Rounding
    return net


def rms(x):
    return x.double().square().mean().sqrt().item()


@needs_int8
@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_it_is_what_rounding_to_bytes_makes_of_the_model(size, act, monkeypatch):
    """The error against float64 is that of the bytes; bfloat16's of q, k and v, where they are, adds little.

    Nearly the same bytes, that is: what lies half-way between two of them is rounded up in one dtype and down in
    another (one of 100,000 at first), and what that changes makes others differ behind it.
    """
    net, inputs = model(size, hidden_act=act, num_hidden_layers=1), batch()
    for p in net.encoder.parameters():
        p.mul_(0.3)
    visible = inputs["attention_mask"].bool()
    got = net(**inputs).last_hidden_state[visible]
    exact = copy.deepcopy(net).double()
    exact.config.quantization = None
    truth = exact(**inputs).last_hidden_state[visible]
    rounding = as_int8_rounds(net)(**inputs).last_hidden_state[visible]
    assert 1e-3 < rms(rounding - truth) / rms(truth) < 0.1
    assert rms(got - truth) < 1.3 * rms(rounding - truth)
    monkeypatch.setattr(quantized, "attention_dtype", lambda: torch.float32)
    got = net(**inputs).last_hidden_state[visible]
    assert rms(got - rounding) < 0.3 * rms(rounding - truth)


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_a_sequence_has_the_bits_that_it_has_alone(dtype):
    """Sums of whole numbers are exact in any order; the passes and attention work row by row."""
    net, inputs = model(dtype=dtype), batch()
    together = net(**inputs)
    assert together.last_hidden_state.dtype == dtype
    for b, length in enumerate(LENGTHS):
        alone = net(input_ids=inputs["input_ids"][b : b + 1, :length])
        assert torch.equal(alone.last_hidden_state[0], together.last_hidden_state[b, :length]), length


@needs_int8
@torch.no_grad()
def test_padding_and_nan_in_it():
    net, inputs = model(), batch()
    want = net(**inputs, hidden_positions="exact", output_hidden_states=True)
    zero = net(**inputs)
    visible = inputs["attention_mask"].bool()
    assert torch.equal(zero.last_hidden_state[visible], want.last_hidden_state[visible])
    assert torch.equal(want.hidden_states[-1], want.last_hidden_state)
    embeds = net.embeddings.word_embeddings(inputs["input_ids"]).masked_fill(~visible[..., None], float("nan"))
    poisoned = net(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
    assert torch.equal(poisoned.last_hidden_state, zero.last_hidden_state)


@needs_int8
@torch.no_grad()
def test_weights_that_change_are_quantised_anew():
    net, inputs = model(), batch()
    before = net(**inputs).last_hidden_state
    other = model()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.9)
    net.load_state_dict(other.state_dict())
    after = net(**inputs).last_hidden_state
    assert not torch.equal(before, after)
    assert torch.equal(after, other(**inputs).last_hidden_state)


def test_where_it_cannot_be_the_model_runs_as_without():
    net, plain, inputs = model(), model(quantization=None), batch()
    quantized._told.clear()
    with pytest.warns(RuntimeWarning, match="quantization='int8' is left aside: gradients are enabled"):
        got = net(**inputs).last_hidden_state
    assert torch.equal(got, plain(**inputs).last_hidden_state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(**inputs)  # it has been said
        quantized._told.clear()
        net.train()(**inputs).last_hidden_state.sum().backward()  # training is no mistake
    net.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(RuntimeWarning, match="autocast"):
        assert torch.equal(net(**inputs).last_hidden_state, plain(**inputs).last_hidden_state)


@needs_int8
@torch.no_grad()
def test_compiled_it_runs_as_without():
    net, inputs = model("odd"), batch()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    plain = model("odd", quantization=None)
    torch.testing.assert_close(compiled(**inputs).last_hidden_state, plain(**inputs).last_hidden_state)


@needs_int8
@torch.no_grad()
def test_a_layer_that_has_to_be_called_is_called():
    net, inputs = model(), batch()
    whole = net(**inputs).last_hidden_state
    net.encoder.layer[1].output.dense = nn.Sequential(net.encoder.layer[1].output.dense)
    quantized._told.clear()
    with pytest.warns(RuntimeWarning, match="quantization='int8' is for 1 of 2 layers here: it is for plain post-norm"):
        part = net(**inputs).last_hidden_state
    plain = model(quantization=None)(**inputs).last_hidden_state
    assert not torch.equal(part, whole) and not torch.equal(part, plain)
    assert rms(part - plain) < rms(whole - plain)
    calls = []
    hook = net.encoder.layer[0].intermediate.dense.register_forward_hook(lambda *_: calls.append(1))
    net(**inputs)
    hook.remove()
    assert len(calls) == 1


@needs_int8
@torch.no_grad()
def test_explain_names_it():
    explanation = bert_fast.explain(model())
    backends = {c.module.rpartition(".")[0]: c.backend for c in explanation.choices if c.op == "linear"}
    assert {name for name, chosen in backends.items() if chosen == "onednn int8"} == {
        f"encoder.layer.{i}.{part}"
        for i in (0, 1)
        for part in ("attention.self", "attention.output", "intermediate", "output")
    }
    between = {(c.module, c.op): c.backend for c in explanation.choices if c.module.startswith("encoder")}
    assert {key: chosen for key, chosen in between.items() if key[1] not in ("linear", "attention")} == {
        (f"encoder.layer.{i}.{part}", f"byte_{op}"): "extension"
        for i in (0, 1)
        for part, op in (("attention.output", "add_layer_norm"), ("intermediate", "gelu"), ("output", "add_layer_norm"))
    }
    with torch.enable_grad():
        reasons = {reason for c in bert_fast.explain(model()).choices for reason in c.against}
    assert "int8: gradients are enabled: call it under torch.no_grad()" in reasons


CANNOT = {
    "activation": (lambda net: None, {"hidden_act": "relu"}, {}),
    "hook": (lambda net: net.encoder.layer[0].register_forward_hook(lambda *_: None), {}, {}),
    "attentions": (lambda net: None, {}, {"output_attentions": True}),
}


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("why", CANNOT)
@torch.no_grad()
def test_where_no_layer_can_be_in_int8_the_bits_are_those_without(why, dtype):
    change, settings, options = CANNOT[why]
    net, plain = (model(quantization=asked, dtype=dtype, **settings) for asked in ("int8", None))
    change(net), change(plain)
    quantized._told.clear()
    with pytest.warns(RuntimeWarning, match="quantization='int8' is for 0 of 2 layers here"):
        got = net(**batch(), **options).last_hidden_state
    assert torch.equal(got, plain(**batch(), **options).last_hidden_state)


@needs_int8
@torch.no_grad()
def test_rows_of_any_stride_and_dtype():
    net, inputs = model(), batch()
    want = net(**inputs).last_hidden_state
    first = net.encoder.layer[0]

    class Given(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.change, self.inner = change, first

        def forward(self, *given):
            return self.change(self.inner(*given))

    net.encoder.layer[0] = Given(lambda y: y)
    plain = net(**inputs).last_hidden_state
    assert rms(plain - want) < 0.3 * rms(want)
    net.encoder.layer[0] = Given(lambda y: y.t().contiguous().t())
    assert torch.equal(net(**inputs).last_hidden_state, plain)
    net.encoder.layer[0] = Given(lambda y: y.double())
    assert torch.equal(net(**inputs).last_hidden_state, plain)


def test_a_quantization_set_afterwards_is_checked():
    net = model(quantization=None)
    net.config.quantization = "int4"
    with pytest.raises(ValueError, match="quantization must be None or one of"):
        net(**batch())


def test_configurations():
    with pytest.raises(ValueError, match=r"quantization must be None or one of \('int8',\), not 'int4'"):
        BertConfig(quantization="int4")
    with pytest.raises(ValueError, match="batch_invariant=True cannot be had together with quantization"):
        BertConfig(quantization="int8", batch_invariant=True)
    assert "quantization" not in BertConfig().to_json_string()
    assert BertConfig.from_dict(BertConfig(quantization="int8").to_dict()).quantization == "int8"


def test_other_machines(monkeypatch):
    net, inputs = model(), batch()
    monkeypatch.setattr(quantized, "int8_reasons", lambda: ["the processor has no AVX-512 VNNI"])
    quantized._told.clear()
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="no AVX-512 VNNI"):
        got = net(**inputs).last_hidden_state
        assert torch.equal(got, model(quantization=None)(**inputs).last_hidden_state)
