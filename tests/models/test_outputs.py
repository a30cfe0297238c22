"""Outputs: fields, tuples, dictionaries, copies, pickles, pytrees; hidden states and attentions on request."""

import copy
import dataclasses
import pickle

import pytest
import torch
from numerics import assert_close_to_truth
from torch.utils import _pytree as pytree
from twins import CLASSES, TINY, B, S, batch, double, labels_of, ours, padding, shaped, twins

L, N = TINY["num_hidden_layers"], TINY["num_attention_heads"]
ASKED = {"output_hidden_states": True, "output_attentions": True}


def arguments(name, mask=None, labels=True):
    return shaped(name, {**batch(mask), **(labels_of(name) if labels else {})})


@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True}, {"output_attentions": True}, ASKED], ids=str)
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no_labels"])
@pytest.mark.parametrize("name", CLASSES)
def test_fields_and_their_order_are_those_of_transformers(name, labels, asked):
    mine, theirs = twins(name, attention="eager")
    got, want = (m(**arguments(name, labels=labels), **asked) for m in (mine, theirs))
    # transformers adds an empty tuple of cross attentions, which an encoder has not.
    keys = [key for key in want if key != "cross_attentions"]
    assert list(got.keys()) == keys
    assert len(got) == len(keys)
    for index, key in enumerate(keys):
        assert got[index] is got[key] is getattr(got, key) is got.to_tuple()[index]
        left, right = pytree.tree_leaves(got[key]), pytree.tree_leaves(want[key])
        assert [x.shape for x in left] == [x.shape for x in right]
    assert len(got[:1]) == 1
    assert got[:1][0] is got[0]
    assert got[-1] is list(got.values())[-1]


@pytest.mark.parametrize("name", CLASSES)
def test_return_dict_false_gives_the_tuple(name):
    mine, theirs = twins(name)
    output = mine(**arguments(name), return_dict=False)
    expected = theirs(**arguments(name), return_dict=False)
    assert type(output) is tuple
    assert [x.shape for x in output] == [x.shape for x in expected]
    mine.config.return_dict = False
    assert type(mine(**arguments(name))) is tuple
    assert type(mine(**arguments(name), return_dict=True)) is not tuple


def test_the_pooled_output_is_at_index_1():
    output = ours()(**batch())
    assert output[1] is output.pooler_output
    assert output[0] is output.last_hidden_state


def test_without_a_pooler_there_is_no_pooled_output():
    from twins import config

    import bert_fast

    model = bert_fast.BertModel(config(), add_pooling_layer=False)
    output = model(**batch())
    assert output.pooler_output is None
    assert list(output.keys()) == ["last_hidden_state"]
    assert not any(n.startswith("pooler") for n, _ in model.named_parameters())
    with pytest.raises(KeyError):
        output["pooler_output"]


@pytest.mark.parametrize("setting", ASKED)
def test_the_config_asks_and_the_call_wins(setting):
    field = setting.removeprefix("output_")
    model = ours(**{setting: True})
    assert len(getattr(model(**batch()), field)) >= L
    assert getattr(model(**batch(), **{setting: False}), field) is None


@pytest.mark.parametrize("padded", ["no_mask", "right", "left", "holes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_hidden_states_and_attentions(grad, dtype, padded):
    mine, theirs = twins(dtype=dtype, attention="eager")
    mask = padding(padded)
    visible = torch.ones(B, S, dtype=torch.bool) if mask is None else mask.bool()
    with torch.set_grad_enabled(grad):
        output, eager = (m(**batch(mask), **ASKED) for m in (mine, theirs))
        truth = double(theirs)(**batch(mask), **ASKED)
    assert len(output.hidden_states) == L + 1
    assert len(output.attentions) == L
    for got, want, exact in zip(output.hidden_states, eager.hidden_states, truth.hidden_states, strict=True):
        assert got.dtype == dtype
        assert_close_to_truth(got[visible], want[visible], exact[visible], dtype, S)
    for got, want, exact in zip(output.attentions, eager.attentions, truth.attentions, strict=True):
        assert got.shape == (B, N, S, S)
        assert got.dtype == dtype
        assert_close_to_truth(got, want, exact, dtype, S)
        assert (got.transpose(1, 3)[~visible] == 0).all(), "a hidden key has weight"
    assert torch.equal(output.hidden_states[-1][visible], output[0][visible])


@pytest.mark.parametrize("name", CLASSES)
def test_asking_for_attentions_changes_no_number(name):
    model, given = twins(name)[0], arguments(name, padding("holes"))
    plain, asked = model(**given), model(**given, **ASKED)
    for key in plain:
        assert torch.allclose(plain[key], asked[key], rtol=0, atol=2e-5), key


def test_attentions_with_a_4d_mask():
    mine, theirs = twins(attention="eager")
    mask = (torch.rand(B, N, S, S) < 0.5) | torch.eye(S, dtype=torch.bool)
    lowest = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    got, want = mine(**batch(), attention_mask=mask, **ASKED), theirs(**batch(), attention_mask=lowest, **ASKED)
    for left, right in zip(got.attentions, want.attentions, strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-6)


def test_attentions_get_their_gradient():
    mine, theirs = twins(attention="eager")
    weights = torch.randn(B, N, S, S)
    for model in (mine, theirs):
        output = model(**batch(padding("right")), output_attentions=True)
        sum((a * weights).sum() for a in output.attentions).backward()
    for (key, got), want in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert (got.grad is None) == (want.grad is None), key
        assert got.grad is None or torch.allclose(got.grad, want.grad, rtol=1e-4, atol=1e-4), key


# The output object


def output_of(name="BertForTokenClassification"):
    with torch.no_grad():
        return twins(name)[0](**arguments(name), output_hidden_states=True)


def check_same(got, want):
    assert type(got) is type(want)
    assert list(got.keys()) == list(want.keys())
    for left, right in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(got.logits, got["logits"])
    assert torch.equal(got.logits, got[1])


COPIES = {
    "copy": copy.copy,
    "dict_copy": lambda x: x.copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "from_a_dict_as_accelerate_does": lambda x: type(x)(dict(x.items())),
    "from_pairs_as_gather_does": lambda x: type(x)((k, x[k]) for k in x),
    "from_keywords": lambda x: type(x)(**x),
    "from_fields": lambda x: type(x)(*x.to_tuple()),
    "dataclasses_replace": lambda x: dataclasses.replace(x),
    "pytree_map": lambda x: pytree.tree_map(lambda t: t, x),
    "pytree_round_trip": lambda x: pytree.tree_unflatten(*pytree.tree_flatten(x)),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_equal_and_of_the_same_class(how):
    output = output_of()
    check_same(COPIES[how](output), output)


def test_a_map_reaches_every_tensor():
    output = output_of()
    mapped = pytree.tree_map(lambda x: x + 1, output)
    assert torch.equal(mapped.logits, output.logits + 1)
    assert torch.equal(mapped.hidden_states[0], output.hidden_states[0] + 1)


def test_fields_can_be_set_either_way():
    output = output_of()
    output.logits = torch.zeros(1)
    assert output["logits"] is output.logits is output[1]
    output["loss"] = torch.ones(1)
    assert output["loss"] is output.loss is output[0]


def test_a_field_set_after_it_was_none_appears():
    output = ours("BertForTokenClassification")(**batch())
    assert "loss" not in output
    output.loss = torch.ones(())
    assert output["loss"] is output.loss


def test_it_is_a_mapping():
    output = output_of()
    assert dict(**output).keys() == output.keys()
    assert list(output) == ["loss", "logits", "hidden_states"]
    assert "logits" in output
    assert "attentions" not in output
    assert output.get("attentions") is None
    assert isinstance(output, dict)


def test_mapping_operations_keep_fields_and_keys_together():
    output = output_of()
    del output["loss"]
    assert output.loss is None
    logits = output.pop("logits")
    assert output.logits is None
    assert list(output.keys()) == ["hidden_states"]
    output.update({"logits": logits})
    assert output.logits is logits is output["logits"]
    output.setdefault("loss", logits)
    assert output.loss is logits
    output.loss = None
    assert output.loss is None
    assert "loss" not in output
    assert output.pop("loss", 3) == 3
    with pytest.raises(KeyError):
        output.pop("loss")


@pytest.mark.parametrize("how", ["from_a_dict_as_accelerate_does", "from_pairs_as_gather_does", "copy", "pickle"])
def test_copies_of_an_output_without_its_first_field(how):
    with torch.no_grad():
        output = ours("BertForTokenClassification")(**batch())
    copied = COPIES[how](output)
    assert list(copied.keys()) == ["logits"]
    assert copied.loss is None
    assert copied[0] is copied.logits


def test_a_map_to_something_else_than_tensors():
    output = output_of()
    shapes = pytree.tree_map(lambda x: list(x.shape), output)
    assert shapes.logits == [B, S, 2]
    numbers = pytree.tree_map(lambda x: float(x.double().sum()), output)
    assert numbers.loss == float(output.loss)


def test_unknown_fields_and_indices_are_errors():
    output = output_of()
    with pytest.raises(KeyError):
        output["nothing"]
    with pytest.raises(AttributeError):
        _ = output.nothing
    with pytest.raises(IndexError):
        output[7]
