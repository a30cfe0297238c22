"""verify: it sees an error of ours, tells it from rounding, and leaves the model as it was."""

import pickle

import pytest
import torch
from integrations.families import batch, every_kind_of_padding, model
from torch import nn

import bert_fast
from bert_fast.integrations.verification import ContractBroken, LayerErrors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["BertForSequenceClassification", "DistilBertModel"])
def test_every_layer_is_measured(name, dtype):
    net = bert_fast.accelerate(model(name).to(dtype)).train()
    (report,) = bert_fast.verify(net, {**batch(name, every_kind_of_padding()), "labels": torch.zeros(1)})
    assert report.held and report.own_code is None and report.dtype == dtype
    assert [row.layer for row in report.layers] == [0, 1, 2]
    assert all(0 < row.ours <= row.allowed and row.theirs > 0 for row in report.layers)
    assert all(row.ours < row.ours_largest <= row.allowed_largest for row in report.layers)
    assert "holds the numeric contract" in str(report)
    assert net.training and next(net.parameters()).dtype == dtype


def test_a_wrong_layer_is_an_exception():
    net = bert_fast.accelerate(model())
    net.forward.parts().encoder.layer[1].output.LayerNorm = nn.LayerNorm(48)
    with pytest.raises(ContractBroken, match="BertModel in torch.float32 BREAKS"):
        bert_fast.verify(net, batch("BertModel", every_kind_of_padding()))


class _OneElementOff(nn.Module):
    """Wrong in one element, by too little for a mean over many to show."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        y = self.norm(x)
        y.view(-1)[7] += 2e-5
        return y


def test_one_wrong_element_is_an_exception():
    net = bert_fast.accelerate(model())
    output = net.forward.parts().encoder.layer[1].output
    output.LayerNorm = _OneElementOff(output.LayerNorm)
    with pytest.raises(ContractBroken) as broken:
        bert_fast.verify(net, batch("BertModel", every_kind_of_padding()))
    (report,) = pickle.loads(pickle.dumps(broken.value)).reports
    assert [row.held for row in report.layers] == [True, True, False]
    last = report.layers[2]
    assert last.ours <= last.allowed and last.ours_largest > last.allowed_largest
    assert str(last).endswith("BROKEN") and f"allowed {last.allowed_largest:.2e}" in str(broken.value)


def test_a_batch_of_which_nothing_is_shown_breaks_nothing():
    net, given = bert_fast.accelerate(model()), batch("BertModel", every_kind_of_padding())
    given["attention_mask"] = torch.zeros_like(given["attention_mask"])
    (report,) = bert_fast.verify(net, given)
    assert report.held and report.layers[1].elements == 0


@pytest.mark.parametrize("elements, held", [(63, True), (64, False)])
def test_a_mean_over_few_elements_is_not_judged(elements, held):
    assert LayerErrors(0, elements, 2.0, 0.1, 1.0, 1.0, 0.1, 1.0).held is held
    assert not LayerErrors(0, elements, float("nan"), 0.1, 1.0, float("nan"), 0.1, 1.0).held


def test_what_runs_its_own_code_says_so():
    net = bert_fast.accelerate(model())
    net.encoder.layer[0].register_forward_hook(lambda module, inputs, output: None)
    (report,) = bert_fast.verify(net, batch())
    assert report.held and "has a hook" in report.own_code
    assert not net.forward.reasons and net.forward.accelerated == 0


def test_texts_need_a_tokenizer():
    net = bert_fast.accelerate(model())
    with pytest.raises(ValueError, match="tokenizer="):
        bert_fast.verify(net, ["one text"])
    (report,) = bert_fast.verify(net, ["one text"], tokenizer=lambda texts, **how: batch())
    assert report.held
    with pytest.raises(ValueError, match="list of texts or a dictionary"):
        bert_fast.verify(net, 3)
    with pytest.raises(ValueError, match="nothing in this BertModel is accelerated"):
        bert_fast.verify(model(), batch())
