"""Every class against transformers with the same weights: outputs, losses and every parameter's gradient.

The truth is transformers' model in float64; how far ours may lie from it is measured against transformers' own model in
the dtype under test (tests/numerics.py). Parity is claimed on visible places, or everywhere under "exact".
"""

import functools

import pytest
import torch
from numerics import assert_close_to_truth
from twins import CLASSES, B, S, batch, double, labels_of, padding, read_places, shaped, twins

import bert_fast

# Rows whose every token is hidden have no number to agree on: tests of their own below.
PADDINGS = ("no_mask", "no_padding", "right", "left", "both_sides", "holes", "one_token_each")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The longest sum behind one element: the tokens of a batch (gradients) or a row of the vocabulary (logits).
TERMS = B * S


def upstream(key, value):
    generator = torch.Generator().manual_seed(len(key))
    return torch.randn(value.shape, generator=generator, dtype=torch.float64)


def forward(model, name, mask, **options):
    arguments = shaped(name, {**batch(mask), **labels_of(name, getattr(model.config, "num_labels", 2))})
    return model(**arguments, **options)


def backward(output, visible, everywhere):
    """Backward of the loss plus a random weighting of every number that parity is claimed on."""
    total = 0
    for key, value in output.items():
        value = value.double()
        weighted = value if value.dim() == 0 else value * upstream(key, value)
        total = total + read_places(weighted, visible, everywhere).sum()
    total.backward()


def gradients(model):
    """By name; where the true gradient is 0, and rounding noise has no scale of its own, it joins its neighbour's.

    That is the key's bias always, and all of query and key where every token sees but itself.
    """
    grads = {n: p.grad.detach().flatten() for n, p in model.named_parameters() if p.grad is not None}
    if "cls.predictions.decoder.bias" in grads:  # transformers has two, of which one is used, when nothing is tied
        grads["cls.predictions.bias"] = grads.pop("cls.predictions.decoder.bias")
    for name in [n for n in grads if n.endswith("self.value.weight")]:
        value, attention = grads[name], name.removesuffix("value.weight")
        query, weight, bias = (grads.pop(attention + part) for part in ("query.weight", "key.weight", "key.bias"))
        key = torch.cat([weight, bias])
        query_bias = grads.pop(attention + "query.bias")
        alone = max(query.abs().max(), key.abs().max()) < 1e-4 * value.abs().max()
        parts = {"query.weight": query, "query.bias": query_bias, "key.weight": key}
        grads |= {name: torch.cat([value, *parts.values()])} if alone else {attention + k: v for k, v in parts.items()}
    return grads


def everywhere(name, options=()):
    return name == "BertForQuestionAnswering" or ("hidden_positions", "exact") in options


@functools.lru_cache(maxsize=4)
def expected(name, padded, dtype, changes=(), options=()):
    """Outputs and gradients of transformers, in the dtype and in float64; computed once for all tests of a case."""
    _, theirs = twins(name, dtype=DTYPES[dtype], train=True, **dict(changes))
    mask = padding(padded)
    visible = torch.ones(B, S, dtype=torch.bool) if mask is None else mask.bool()
    results = []
    for model in (theirs, double(theirs)):
        output = forward(model, name, mask)
        backward(output, visible, everywhere(name, options))
        results.append(({k: v.detach() for k, v in output.items()}, gradients(model)))
    return mask, visible, *results


def check_outputs(output, eager, truth, dtype, name, visible, options=()):
    assert list(output.keys()) == list(truth.keys())
    for key in truth:
        got, want, exact = (read_places(x[key], visible, everywhere(name, options)) for x in (output, eager, truth))
        assert_close_to_truth(got.detach(), want, exact, dtype, TERMS, f"{name}.{key}")


def check_gradients(model, eager, truth, dtype):
    got = gradients(model)
    assert sorted(got) == sorted(truth)
    for name in truth:
        assert_close_to_truth(got[name], eager[name], truth[name], dtype, TERMS, f"gradient of {name}")


@pytest.mark.parametrize("padded", PADDINGS)
@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_every_gradient_in_float32(name, padded):
    mask, visible, (eager, eager_grads), (truth, truth_grads) = expected(name, padded, "float32")
    mine, _ = twins(name, train=True)
    output = forward(mine, name, mask)
    check_outputs(output, eager, truth, torch.float32, name, visible)
    backward(output, visible, everywhere(name))
    check_gradients(mine, eager_grads, truth_grads, torch.float32)
    mine.eval()
    with torch.no_grad():
        for _ in ("derives", "reads the derived"):
            check_outputs(forward(mine, name, mask), eager, truth, torch.float32, name, visible)


@pytest.mark.parametrize("padded", ["right", "left", "holes"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_every_gradient_in_16_bits(name, dtype, padded):
    mask, visible, (eager, eager_grads), (truth, truth_grads) = expected(name, padded, dtype)
    mine, _ = twins(name, dtype=DTYPES[dtype], train=True)
    output = forward(mine, name, mask)
    assert all(v.dtype == DTYPES[dtype] for k, v in output.items() if k != "loss")
    check_outputs(output, eager, truth, DTYPES[dtype], name, visible)
    backward(output, visible, everywhere(name))
    check_gradients(mine, eager_grads, truth_grads, DTYPES[dtype])


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "BertForQuestionAnswering"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cpu_linear", ["onednn", "torch", "auto"], indirect=True)
def test_cached_packed_inference_holds_the_contract(cpu_linear, dtype, name):
    mask, visible, (eager, _), (truth, _) = expected(name, "holes", dtype)
    mine, _ = twins(name, dtype=DTYPES[dtype])
    with torch.no_grad():
        for _ in ("derives", "reads the derived"):
            output = forward(mine, name, mask)
            assert all(v.dtype == DTYPES[dtype] for k, v in output.items() if k != "loss")
            check_outputs(output, eager, truth, DTYPES[dtype], name, visible)


@pytest.mark.parametrize("name", CLASSES)
def test_float64_models_run_and_agree(name):
    mask, visible, _, (truth, truth_grads) = expected(name, "holes", "float32")
    mine = double(twins(name, train=True)[0])
    output = forward(mine, name, mask)
    for key in truth:
        got, exact = (read_places(x[key], visible, everywhere(name)) for x in (output, truth))
        assert got.dtype == torch.float64
        assert torch.allclose(got, exact, rtol=1e-12, atol=1e-12)
    backward(output, visible, everywhere(name))
    for key, grad in gradients(mine).items():
        assert torch.allclose(grad, truth_grads[key], rtol=1e-9, atol=1e-10), key
    mine.eval()
    with torch.no_grad():
        again = forward(mine, name, mask)
    assert all(torch.allclose(again[k], output[k], rtol=1e-12, atol=1e-12) for k in truth)


@pytest.mark.parametrize("padded", ["right", "left", "both_sides", "holes", "one_token_each"])
@pytest.mark.parametrize("name", CLASSES)
def test_hidden_positions_exact_agrees_everywhere(name, padded):
    options = (("hidden_positions", "exact"),)
    mask, visible, (eager, eager_grads), (truth, truth_grads) = expected(name, padded, "float32", options=options)
    mine, _ = twins(name, train=True)
    output = forward(mine, name, mask, hidden_positions="exact")
    check_outputs(output, eager, truth, torch.float32, name, visible, options)
    backward(output, visible, True)
    check_gradients(mine, eager_grads, truth_grads, torch.float32)
    mine.eval()
    with torch.no_grad():
        again = forward(mine, name, mask, hidden_positions="exact")
    check_outputs(again, eager, truth, torch.float32, name, visible, options)


VARIANTS = {
    "gelu_is_erf": {"hidden_act": "gelu"},
    "gelu_new_is_tanh": {"hidden_act": "gelu_new"},
    "gelu_pytorch_tanh_is_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "silu": {"hidden_act": "silu"},
    "tanh": {"hidden_act": "tanh"},
    "one_head_of_48": {"num_attention_heads": 1},
    "head_size_1": {"num_attention_heads": 48},
    "head_size_7_hidden_35": {"hidden_size": 35, "num_attention_heads": 5, "intermediate_size": 37},
    "one_layer": {"num_hidden_layers": 1},
    "no_layer": {"num_hidden_layers": 0},
    "one_token_type_more": {"type_vocab_size": 3},
    "large_eps": {"layer_norm_eps": 0.5},
    "untied_decoder": {"tie_word_embeddings": False},
    "no_padding_token": {"pad_token_id": None},
    "another_padding_token": {"pad_token_id": 7},
    "three_labels": {"num_labels": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForSequenceClassification"])
def test_config_variants(name, variant):
    changes = VARIANTS[variant]
    mask, visible, (eager, eager_grads), (truth, truth_grads) = expected(
        name, "right", "float32", tuple(sorted(changes.items()))
    )
    mine, _ = twins(name, train=True, **changes)
    output = forward(mine, name, mask)
    check_outputs(output, eager, truth, torch.float32, name, visible)
    backward(output, visible, False)
    check_gradients(mine, eager_grads, truth_grads, torch.float32)
    mine.eval()
    with torch.no_grad():
        check_outputs(forward(mine, name, mask), eager, truth, torch.float32, name, visible)


def test_gelu_and_its_tanh_formula_are_told_apart():
    exact, _ = twins(hidden_act="gelu")
    tanh, _ = twins(hidden_act="gelu_new")
    difference = (exact(**batch())[0] - tanh(**batch())[0]).abs().max()
    assert difference > 1e-4, "the parity tests of the two formulas could not fail"


@pytest.mark.parametrize("layers, bound", [(6, 1e-5), (12, 2e-5)], ids=["6_layers", "12_layers"])
def test_float32_models_of_real_depth_stay_within_the_promised_difference(layers, bound):
    """At the scale of trained weights: standard deviation 0.05 at hidden size 192."""
    import transformers
    from twins import TINY, randomize

    changes = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": layers}
    mine = randomize(bert_fast.BertModel(bert_fast.BertConfig(**{**TINY, **changes})), std=0.05).eval()
    theirs = transformers.BertModel(transformers.BertConfig(**{**TINY, **changes})).eval()
    theirs.load_state_dict(mine.state_dict())
    mask = padding("holes")
    with torch.no_grad():
        got, want = mine(**batch(mask)), theirs(**batch(mask))
    assert (got[0] - want[0])[mask.bool()].abs().max() <= bound
    assert (got[1] - want[1]).abs().max() <= bound


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("padded", ["one_row_all_masked", "all_rows_masked"])
@pytest.mark.parametrize("hidden", ["zero", "exact"])
@pytest.mark.parametrize("name", CLASSES)
def test_fully_masked_rows_are_finite_and_leave_the_others_alone(name, hidden, padded, dtype):
    mine, _ = twins(name, dtype=DTYPES[dtype], train=True)
    mask = padding(padded)
    output = forward(mine, name, mask, hidden_positions=hidden)
    output[0].double().sum().backward()
    assert all(v.isfinite().all() for v in output.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in mine.parameters())
    if padded == "one_row_all_masked" and hidden == "zero" and name in ("BertModel", "BertForTokenClassification"):
        places = output["last_hidden_state" if name == "BertModel" else "logits"]
        others = forward(mine, name, padding("right"), hidden_positions="zero")
        others = others["last_hidden_state" if name == "BertModel" else "logits"]
        keep = [0, 2, 3, 4, 5]
        assert torch.equal(places[keep][mask[keep].bool()], others[keep][mask[keep].bool()])
        labelled = torch.zeros(B, S, dtype=torch.bool) if name == "BertModel" else forward_labels(name) != -100
        assert (places[1][~labelled[1]] == 0).all()


def forward_labels(name):
    return labels_of(name)["labels"]
