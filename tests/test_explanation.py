"""explain: which op of which module ran on what, and why not on something else; that asking changes nothing."""

import json

import pytest
import torch
from torch import nn
from twins import CLASSES, ours

import bert_fast
from bert_fast import explanation, ops, use_backend


def choices(model, **inputs):
    return {(choice.module, choice.op): choice for choice in model.explain(**inputs).choices}


LAYER = "bert.encoder.layer.1"
PRODUCTS = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")


@pytest.mark.parametrize("name", CLASSES)
def test_every_model_is_explained_module_by_module(name):
    model = ours(name)
    with torch.no_grad():
        found = bert_fast.explain(model)
    assert (found.model, found.device, found.dtype) == (name, "cpu", "torch.float32")
    assert found.mode == "inference, without gradients"
    modules = dict(model.named_modules())
    assert {choice.module for choice in found.choices} <= modules.keys()
    linear = {choice.module for choice in found.choices if choice.op == "linear"}
    assert linear == {path for path, module in modules.items() if isinstance(module, nn.Linear)}
    assert sum(choice.op == "attention" for choice in found.choices) == 2
    assert json.loads(json.dumps(found.as_dict()))["choices"][0]["module"].endswith("embeddings")


@pytest.mark.parametrize("cpu_linear", ["onednn"], indirect=True)
def test_it_names_the_reasons_on_a_cpu(cpu_linear):
    found = {}
    with torch.no_grad():
        found[False] = choices(ours("BertForMaskedLM"))
    found[True] = choices(ours("BertForMaskedLM").train())
    for training, rows in found.items():
        attention = rows[f"{LAYER}.attention.self", "attention"]
        assert "triton: head dimension 12 is not a multiple of 8 from 8 to 128" in attention.against
        assert ("extension: gradients are enabled" in attention.against) == training
        for product in PRODUCTS:
            row = rows[f"{LAYER}.{product}", "linear"]
            assert row.backend == ("reference" if training else "onednn")
            wanted = ("onednn: packed weights are for calls without gradients",) if training else ()
            assert row.against == wanted
        assert rows["bert.embeddings", "embedding_layer_norm"].backend == "reference"
        assert any("cuda: " in reason for reason in rows["bert.embeddings", "embedding_layer_norm"].against)


@pytest.mark.usefixtures("emulated")
def test_it_tells_kernels_from_what_they_cannot_do():
    rows = choices(ours("BertForMaskedLM"))
    assert rows["bert.embeddings", "embedding_layer_norm"] == explanation.Choice(
        "bert.embeddings", "embedding_layer_norm", "cuda"
    )
    wide = ours("BertModel").double()
    against = choices(wide)["embeddings", "embedding_layer_norm"].against
    assert against == ("cuda: the word table is torch.float64, not float32, float16 or bfloat16",)
    with use_backend("reference"):
        assert choices(ours("BertModel"))["embeddings", "embedding_layer_norm"].backend == "reference"


class Adapted(nn.Linear):
    pass


def test_modules_that_have_to_be_called_are_named():
    model = ours("BertModel")
    model.encoder.layer[0].attention.self.query = Adapted(48, 48)
    model.encoder.layer[1].output.dense.register_forward_hook(lambda *_: None)
    model.encoder.layer[1].output.LayerNorm.register_forward_hook(lambda *_: None)
    rows = choices(model)
    assert rows["encoder.layer.0.attention.self.query", "linear"].against == (
        "called as it is: its type is Adapted, not Linear",
    )
    hooked = ("called as it is: it has hooks, or another forward",)
    assert rows["encoder.layer.1.output.dense", "linear"].against == hooked
    assert rows["encoder.layer.1.output.LayerNorm", "LayerNorm"].against == hooked
    assert ("encoder.layer.0.output.LayerNorm", "LayerNorm") not in rows


def test_labels_bring_in_the_loss():
    rows = choices(ours("BertForMaskedLM"), labels=torch.ones(2, 8, dtype=torch.int64))
    assert ("", "cross_entropy") in rows
    assert ("", "cross_entropy") not in choices(ours("BertForMaskedLM"))


def test_asking_changes_nothing():
    model = ours("BertForSequenceClassification", hidden_dropout_prob=0.3).train()
    state, before = torch.get_rng_state(), {name: p.clone() for name, p in model.named_parameters()}
    model.explain()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_page_joins_layers_that_are_alike_and_numbers_the_reasons():
    with torch.no_grad():
        model = ours("BertModel", num_hidden_layers=4)
        model.encoder.layer[2].attention.self.query = Adapted(48, 48)
        page = str(model.explain()).splitlines()
    assert page[0] == "BertModel on cpu, torch.float32, inference, without gradients"
    query = [line.split() for line in page if "attention.self.query" in line]
    assert [line[0] for line in query] == [
        "encoder.layer.0-1,3.attention.self.query",
        "encoder.layer.2.attention.self.query",
    ]
    number = query[1][-1]
    assert f"{number} called as it is: its type is Adapted, not Linear" in page


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="one of bert_fast's, or what .* was given, not torch.nn.modules.linear.Linear"):
        bert_fast.explain(nn.Linear(2, 2))


def test_the_listener_is_gone_afterwards(monkeypatch):
    model = ours("BertModel")
    model.explain()
    heard = []
    monkeypatch.setattr(explanation, "_calling_module", lambda names: heard.append(names))
    ops.cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]))
    model(torch.ones(1, 3, dtype=torch.int64))
    assert heard == []
