"""Accelerated models against the untouched ones: outputs, hidden states, losses and every gradient, at every place.

The truth is the untouched model in float64; how far an accelerated one may lie from it is measured against the
untouched one in the dtype under test (tests/numerics.py). BERT_FAST_LIVE=all adds dtypes, configs and every mask.
"""

import copy
import functools
import os
import warnings

import pytest
import torch
import transformers
from integrations.families import (
    CLASSES,
    FAMILIES,
    B,
    S,
    batch,
    encoder_of,
    every_kind_of_padding,
    family_of,
    labels,
    model,
    shaped,
)
from numerics import assert_close_to_truth

import bert_fast

WIDE = os.environ.get("BERT_FAST_LIVE") == "all"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONFIGS = {
    "gelu": {},
    "tanh_gelu": {"hidden_act": "gelu_new"},
    "relu": {"hidden_act": "relu"},
    "odd_sizes": {"hidden_size": 60, "num_attention_heads": 3, "intermediate_size": 77},
    "one_layer": {"num_hidden_layers": 1},
}
_DISTIL_NAMES = {
    "hidden_act": "activation",
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
}
MASKS = {"no_mask": lambda: None, "every_kind": every_kind_of_padding}
if WIDE:
    MASKS |= {
        "no_padding": lambda: torch.ones(B, S, dtype=torch.int64),
        "right": lambda: (torch.arange(S) < torch.tensor([[17], [5], [9], [1], [16], [8]])).long(),
        "left": lambda: (torch.arange(S) < torch.tensor([[17], [5], [9], [1], [16], [8]])).long().flip(1),
        "bool": lambda: every_kind_of_padding().bool(),
        "float": lambda: every_kind_of_padding().float(),
    }


def changes(name, config):
    settings = CONFIGS[config]
    if family_of(name) == "DistilBert":
        return {_DISTIL_NAMES[key]: value for key, value in settings.items()}
    return settings


def forward(net, name, mask, **options):
    return net(**batch(name, mask), **labels(name), **options)


def backward(output):
    """Backward of the loss plus a random weighting of every other number."""
    total = 0
    for key, value in output.items():
        generator = torch.Generator().manual_seed(len(key))
        for part in value if isinstance(value, tuple) else (value,):
            weights = torch.ones(()) if part.dim() == 0 else torch.randn(part.shape, generator=generator)
            total = total + (part.double() * weights).sum()
    total.backward()


def gradients(net):
    """By name; those of an attention together: where the truth is 0 (a key's bias), noise has no scale of its own."""
    groups = {}
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            key = name.split("attention")[0] + "attention" if "attention" in name else name
            groups.setdefault(key, []).append(parameter.grad.detach().flatten())
    return {name: torch.cat(parts) for name, parts in groups.items()}


@functools.lru_cache(maxsize=4)
def expected(name, config, mask, dtype):
    """Outputs and gradients of the untouched model, in the dtype and in float64."""
    results = []
    for kind in (DTYPES[dtype], torch.float64):
        net = model(name, **changes(name, config)).to(DTYPES[dtype]).to(kind).train()
        if name.endswith("ForMultipleChoice") and getattr(net.base_model, "pooler", net) is None:
            pytest.skip(f"transformers {transformers.__version__} reads a pooled output that its {name} has not")
        output = forward(net, name, MASKS[mask](), output_hidden_states=True)
        backward(output)
        results.append((dict(output.items()), gradients(net)))
    return results


def check(got, eager, truth, dtype, name):
    assert list(got) == list(truth)
    for key, want in truth.items():
        values = (got[key], eager[key], want)
        for index, parts in enumerate(zip(*values, strict=True) if isinstance(want, tuple) else [values]):
            assert parts[0].dtype == parts[1].dtype
            mine, theirs, exact = (part.detach() for part in parts)
            assert_close_to_truth(mine, theirs, exact.double(), dtype, B * S, f"{name} {key} {index}")


def check_case(name, config, mask, dtype):
    (eager, eager_grads), (truth, truth_grads) = expected(name, config, mask, dtype)
    net = bert_fast.accelerate(model(name, **changes(name, config)).to(DTYPES[dtype])).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = forward(net, name, MASKS[mask](), output_hidden_states=True)
        backward(output)
        check(dict(output.items()), eager, truth, DTYPES[dtype], name)
        check(gradients(net), eager_grads, truth_grads, DTYPES[dtype], f"{name} gradient of")
        net.eval()
        with torch.no_grad():
            for states in (True, False, False):
                output = dict(forward(net, name, MASKS[mask](), output_hidden_states=states).items())
                asked = [key for key in truth if states or key != "hidden_states"]
                check(output, *({k: x[k] for k in asked} for x in (eager, truth)), DTYPES[dtype], name)
    assert encoder_of(net).accelerated == 4
    assert not encoder_of(net).reasons


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CLASSES)
def test_outputs_hidden_states_loss_and_every_gradient(name, mask):
    check_case(name, "gelu", mask, "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", CLASSES if WIDE else [f + "Model" for f in FAMILIES])
def test_in_16_bits(name, dtype):
    check_case(name, "gelu", "every_kind", dtype)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c != "gelu"])
@pytest.mark.parametrize("name", CLASSES if WIDE else ["BertModel", "ElectraForTokenClassification"])
def test_other_configs(name, config):
    check_case(name, config, "every_kind", "float32")


@pytest.mark.parametrize("name", [f + "ForSequenceClassification" for f in FAMILIES])
def test_what_reads_first_places_only_computes_no_hidden_place(name, monkeypatch):
    net, mask = bert_fast.accelerate(model(name)), every_kind_of_padding()
    live, rows = encoder_of(net), []
    adapter = type(live.adapter)
    embed = adapter.embed
    monkeypatch.setattr(adapter, "embed", lambda *args: rows.append(embed(*args)) or rows[-1])
    with torch.no_grad():
        forward(net, name, mask)
        assert len(rows[-1]) == mask.sum() + (mask[:, 0] == 0).sum()
        # Whoever asks for hidden states, hooks the encoder or calls it by itself reads every place.
        forward(net, name, mask, output_hidden_states=True)
        assert len(rows[-1]) == B * S
        live.module(**batch(name, mask))
        assert len(rows[-1]) == B * S
        handle = live.module.register_forward_hook(lambda module, inputs, output: None)
        forward(net, name, mask)
        assert len(rows[-1]) == B * S
        handle.remove()
        forward(net, name, mask)
        assert len(rows[-1]) < B * S
        pooler = getattr(live.module, "pooler", None)
        if pooler is not None and family_of(name) != "Albert":  # which hands its pooler the first places only
            pooler.__class__ = type("Mine", (type(pooler),), {})  # a user's own may read anything
            forward(net, name, mask)
            assert len(rows[-1]) == B * S


def test_multiple_choice_that_summarises_by_the_mean_reads_every_place():
    name, mask = "ElectraForMultipleChoice", every_kind_of_padding()
    net = model(name, summary_type="mean")
    want = forward(net, name, mask).logits
    torch.testing.assert_close(forward(bert_fast.accelerate(net), name, mask).logits, want, rtol=0, atol=1e-4)
    assert "mean" in encoder_of(net).positions.why


class _MeanHead(torch.nn.Module):
    def forward(self, states, **options):
        return states.mean(1)[:, :2]


@pytest.mark.parametrize("after", [False, True])
def test_a_users_own_head_that_is_handed_every_place(after):
    name, mask = "RobertaForSequenceClassification", every_kind_of_padding()
    net = model(name)
    net.classifier = _MeanHead()
    want = forward(net, name, mask).logits
    fast = bert_fast.accelerate(model(name) if after else net)
    fast.classifier = _MeanHead()
    torch.testing.assert_close(forward(fast, name, mask).logits, want, rtol=1e-4, atol=1e-4)
    assert encoder_of(fast).accelerated == 1
    bert_fast.accelerate(fast)
    assert "_MeanHead" in encoder_of(fast).positions.why


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["BertModel", "RobertaModel", "ElectraModel", "DistilBertModel"])
def test_the_other_shapes_of_call(name, mask):
    """Embeddings in place of ids, no types, positions, tuples, positional arguments: as the untouched model answers."""
    net = model(name)
    given = batch(name, MASKS[mask]())
    embeds = net.get_input_embeddings()(given["input_ids"]).detach()
    bare = {key: value for key, value in given.items() if key in ("input_ids", "attention_mask")}
    without_ids = {key: value for key, value in bare.items() if key != "input_ids"}
    calls = [
        ((), bare),
        ((), {**without_ids, "inputs_embeds": embeds}),
        ((given["input_ids"], given.get("attention_mask")), {}),
        ((), {**given, "return_dict": False}),
        ((), {**given, "return_dict": False, "output_hidden_states": True}),
    ]
    if family_of(name) != "DistilBert":
        calls += [((), {**given, "position_ids": torch.arange(S)[None] + 3})]
    fast = bert_fast.accelerate(copy.deepcopy(net))
    for args, kwargs in calls:
        want, got = net(*args, **kwargs), fast(*args, **kwargs)
        assert type(got) is type(want) and len(got) == len(want)
        values = zip(*((x if isinstance(x, tuple) else x.to_tuple()) for x in (got, want)), strict=True)
        for mine, theirs in values:
            pairs = zip(mine, theirs, strict=True) if isinstance(theirs, tuple) else [(mine, theirs)]
            for a, b in pairs:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert encoder_of(fast).accelerated == len(calls)


@pytest.mark.parametrize("kind", ["one_label", "single", "multi"])
@pytest.mark.parametrize("name", ["BertForSequenceClassification", "DistilBertForSequenceClassification"])
def test_labels_of_every_kind(name, kind):
    settings = {"one_label": {"num_labels": 1}, "single": {"num_labels": 4}, "multi": {"num_labels": 3}}[kind]
    if kind == "multi":
        settings["problem_type"] = "multi_label_classification"
    net = model(name, **settings)
    given = shaped(name, batch(name, every_kind_of_padding()))
    given["labels"] = {
        "one_label": torch.randn(B),
        "single": torch.tensor([0, 1, 2, 3, 0, 1]),
        "multi": torch.ones(B, 3),
    }[kind]
    want = net(**given)
    got = bert_fast.accelerate(net)(**given)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-4)
