"""verify: it sees an error of ours, tells it from rounding, and leaves the model as it was."""

import pytest
import torch
from integrations.families import batch, every_kind_of_padding, model
from torch import nn

import bert_fast
from bert_fast.integrations.verification import ContractBroken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["BertForSequenceClassification", "DistilBertModel"])
def test_every_layer_is_measured(name, dtype):
    net = bert_fast.accelerate(model(name).to(dtype)).train()
    (report,) = bert_fast.verify(net, {**batch(name, every_kind_of_padding()), "labels": torch.zeros(1)})
    assert report.held and report.own_code is None and report.dtype == dtype
    assert [row.layer for row in report.layers] == [0, 1, 2]
    assert all(0 < row.ours <= row.allowed and row.theirs > 0 for row in report.layers)
    assert "holds the numeric contract" in str(report)
    assert net.training and next(net.parameters()).dtype == dtype


def test_a_wrong_layer_is_an_exception():
    net = bert_fast.accelerate(model())
    net.forward.parts().encoder.layer[1].output.LayerNorm = nn.LayerNorm(48)
    with pytest.raises(ContractBroken, match="BertModel in torch.float32 BREAKS"):
        bert_fast.verify(net, batch("BertModel", every_kind_of_padding()))


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
