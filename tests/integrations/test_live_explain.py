"""explain of accelerated models: rows by the names of their own modules, and what their calls did so far."""

import json
import warnings

import pytest
import torch
from integrations.families import FAMILIES, B, S, batch, encoder_of, every_kind_of_padding, labels, model
from torch import nn

import bert_fast

NAME = "BertForSequenceClassification"


def rows(net, **inputs):
    return {(row.module, row.op): row for row in bert_fast.explain(net, **inputs).choices}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_bears_a_name_of_their_tree_and_no_product_is_missing(family):
    net = bert_fast.accelerate(model(family + "Model"))
    with torch.no_grad():
        found = bert_fast.explain(net)
    assert found.mode == "inference, without gradients"
    modules = dict(net.named_modules())
    assert {row.module for row in found.choices} <= modules.keys()
    products = {row.module for row in found.choices if row.op == "linear"}
    assert products == {path for path, part in modules.items() if isinstance(part, nn.Linear)}
    attention = {row.module for row in found.choices if row.op == "attention"}
    assert attention == {path for path, part in modules.items() if _computes_attention(path, part, modules)}
    assert json.loads(json.dumps(found.as_dict()))["encoders"][0]["kind"] == family + "Model"


def _computes_attention(path, part, modules):
    """Whether queries are a child of it, whatever they are called."""
    return any(f"{path}.{name}" in modules for name in ("query", "q_lin", "q", "q_proj", "Wqkv"))


def test_the_records_count_calls_reasons_and_padding():
    net, mask = bert_fast.accelerate(model(NAME)), every_kind_of_padding()
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="output_attentions"):
        for given in (mask, torch.ones_like(mask), mask):
            net(**batch(NAME, given))
        for _ in range(2):
            net(**batch(NAME, mask), output_attentions=True)
    found = bert_fast.explain(net)
    (record,) = found.encoders
    assert (record.module, record.kind, record.accelerated) == ("bert", "BertModel", 3)
    assert record.own_code == {"output_attentions are asked for": 2}
    assert (record.batches, record.hidden_positions) == (3, "zero")
    assert record.padding == pytest.approx(1 - (2 * int(mask.sum()) + B * S) / (3 * B * S))
    page = str(found)
    assert "bert (BertModel): 3 calls accelerated, 2 by its own code; hidden positions 'zero'" in page
    assert f"padding: {record.padding:.0%} of the places in the last 3 known batches" in page
    assert "bert.encoder.layer.0-1.attention.self" in page


@pytest.mark.parametrize("positions", ["zero", "exact"])
@pytest.mark.parametrize("shape", ["no_mask", "all_visible", "hidden_first_places", "some"])
def test_padding_is_what_the_mask_hides_whatever_is_computed(positions, shape):
    mask = every_kind_of_padding()
    given = {"no_mask": None, "all_visible": torch.ones_like(mask), "some": mask}.get(shape, mask.flip(1))
    net = bert_fast.accelerate(model(), hidden_positions=positions)
    with torch.no_grad():
        net(**batch("BertModel", given))
    hidden = 0 if given is None else int((given == 0).sum())
    assert encoder_of(net).record.padding() == pytest.approx(hidden / (B * S))


def test_only_the_last_batches_are_kept():
    net = bert_fast.accelerate(model(num_hidden_layers=1))
    short = {"input_ids": torch.ones(1, 2, dtype=torch.int64), "attention_mask": torch.tensor([[1, 0]])}
    with torch.no_grad():
        net(**short)
        for _ in range(64):
            net(short["input_ids"])
    record = encoder_of(net).record
    assert (record.accelerated, len(record.batches), record.padding()) == (65, 64, 0.0)


def test_asking_counts_nothing_and_changes_nothing():
    net = bert_fast.accelerate(model(NAME, hidden_dropout_prob=0.3)).train()
    state, before = torch.get_rng_state(), [p.clone() for p in net.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bert_fast.explain(net)
        again = bert_fast.explain(net, **batch(NAME, every_kind_of_padding()), **labels(NAME), output_attentions=True)
    assert found.mode == "training, with gradients"
    against = next(row for row in found.choices if row.op == "linear").against
    assert against == ("onednn: packed weights are for calls without gradients",)
    assert [(row.module, row.op, row.backend) for row in again.choices] == [("bert", "forward", "reference")]
    assert again.choices[0].against == ("its own code runs: output_attentions are asked for",)
    live = encoder_of(net)
    assert live.accelerated == 0 and not live.reasons and found.encoders[0].padding is None
    assert torch.equal(torch.get_rng_state(), state) and net.training
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(net.parameters(), before, strict=True))


def test_a_module_that_holds_several_encoders():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = model("BertModel"), model("DistilBertModel")

        def forward(self, tokens, right):
            last = self.left(tokens).last_hidden_state
            return last + self.right(tokens).last_hidden_state if right else last

    net = bert_fast.accelerate(Two().eval())
    everything = rows(net)
    assert {module.partition(".")[0] for module, _ in everything} == {"left", "right"}
    assert ("right.transformer.layer.1.attention", "attention") in everything
    only_left = rows(net, tokens=torch.ones(1, 3, dtype=torch.int64), right=False)
    assert {module.partition(".")[0] for module, _ in only_left} == {"left"}
    assert [record.module for record in bert_fast.explain(net).encoders] == ["left", "right"]


class Adapted(nn.Linear):
    pass


def test_what_falls_back_is_named_within_the_encoder():
    net = bert_fast.accelerate(model())
    net.encoder.layer[1].intermediate.dense = Adapted(48, 90)
    found = rows(net)
    assert found["encoder.layer.1.intermediate.dense", "linear"].against == (
        "called as it is: its type is Adapted, not Linear",
    )
    net.encoder.layer[0].register_forward_hook(lambda module, inputs, output: None)
    assert rows(net)["", "forward"].against == (
        "its own code runs: encoder.layer.0 has a hook, which expects padded tensors",
    )
    bert_fast.restore(net)
    with pytest.raises(TypeError, match="what bert_fast.accelerate was given, not transformers"):
        bert_fast.explain(net)
