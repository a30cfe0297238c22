"""accelerate(encoder, batch_invariant=True): the same bits for a sequence in any batch, or an error."""

import copy

import pytest
import torch
from integrations import families
from torch import nn

import bert_fast
from bert_fast.ops.attention_host import host_attention_reason
from bert_fast.ops.linear import onednn_runs

pytestmark = pytest.mark.skipif(
    host_attention_reason() is not None or not onednn_runs(torch.float32),
    reason="this machine has no oneDNN or not the extension's attention",
)
COVERED = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "DistilBert", "MPNet", "Albert")


class ModuleHolder(nn.Module):
    def __init__(self):
        super().__init__()
        self.held = families.model("BertModel")


def held(family, dtype=torch.float32, **changes):
    return bert_fast.accelerate(families.model(f"{family}Model", **changes).to(dtype), batch_invariant=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", COVERED)
@torch.no_grad()
def test_every_sequence_has_the_bits_that_it_has_alone(family, dtype):
    model = held(family, dtype)
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, families.VOCAB, (1, n), generator=generator) for n in (1, 2, 3, 7, 12, 24)]
    single = [model(input_ids=row) for row in rows]
    for batch in ([0], [5, 0], [0, 5, 2], [3, 4, 1, 0, 2], [5, 0, 1] * 24):
        width = max(rows[i].shape[1] for i in batch) + len(batch) % 5
        ids, mask = torch.ones(len(batch), width, dtype=torch.int64), torch.zeros(len(batch), width, dtype=torch.int64)
        for b, i in enumerate(batch):
            ids[b, : rows[i].shape[1]], mask[b, : rows[i].shape[1]] = rows[i][0], 1
        output = model(input_ids=ids, attention_mask=mask)
        for b, i in enumerate(batch):
            for name in single[i]:
                seen = output[name][b]
                seen = seen[: rows[i].shape[1]] if name == "last_hidden_state" else seen
                assert torch.equal(seen, single[i][name][0]), (batch, b, name)


@pytest.mark.parametrize("family", ["Roberta", "MPNet"])
@torch.no_grad()
def test_left_padding_without_a_pooler(family):
    model = families.model(f"{family}Model")
    model.pooler = None
    bert_fast.accelerate(model, batch_invariant=True)
    row = torch.arange(3, 16)[None]
    ids, mask = torch.ones(3, 20, dtype=torch.int64), torch.zeros(3, 20, dtype=torch.int64)
    for b, start in enumerate((0, 3, 7)):
        ids[b, start : start + 13], mask[b, start : start + 13] = row[0], 1
    output, single = model(ids, mask)[0], model(row)[0]
    for b, start in enumerate((0, 3, 7)):
        assert torch.equal(output[b, start : start + 13], single[0])
    assert (output[mask == 0] == 0).all()


@torch.no_grad()
def test_a_pooler_that_reads_a_hidden_place_is_an_error():
    mask = torch.tensor([[0, 1, 1]])
    with pytest.raises(RuntimeError, match=r"batch_invariant.*pad on the right"):
        held("Bert")(torch.tensor([[5, 6, 7]]), mask)


@torch.no_grad()
def test_what_would_run_the_original_code_is_an_error():
    model, ids = held("Bert"), torch.tensor([[5, 6, 7]])
    for arguments in ({"output_attentions": True}, {"attention_mask": torch.ones(1, 3, 3)}):
        with pytest.raises(RuntimeError, match=r"batch_invariant=True .* its own code"):
            model(ids, **arguments)
    with torch.enable_grad(), pytest.raises(RuntimeError, match=r"batch_invariant.*no_grad"):
        model(ids)
    with pytest.raises(RuntimeError, match=r"batch_invariant.*training"):
        model.train()(ids)
    with pytest.raises(RuntimeError, match=r"batch_invariant"):
        model.eval().to("meta")(ids.to("meta"))


def test_what_is_no_encoder_or_cannot_be_accelerated_is_refused_at_once():
    with pytest.raises(ValueError, match=r"batch_invariant=True cannot hold: ModuleHolder .*'held'"):
        bert_fast.accelerate(ModuleHolder(), batch_invariant=True)
    with pytest.raises(ValueError, match=r"batch_invariant=True needs hidden_positions='zero'"):
        bert_fast.accelerate(families.model("BertModel"), hidden_positions="exact", batch_invariant=True)
    strange = families.model("BertModel")
    strange.encoder.layer[0].intermediate.intermediate_act_fn = nn.Hardtanh()
    with pytest.raises(RuntimeError, match="batch_invariant=True cannot hold"):
        bert_fast.accelerate(strange, batch_invariant=True)


@torch.no_grad()
def test_it_is_kept_by_copies_and_ended_by_accelerating_again():
    model = held("Bert")
    assert families.encoder_of(copy.deepcopy(model)).batch_invariant
    assert not families.encoder_of(bert_fast.accelerate(model)).batch_invariant


@pytest.mark.skipif("ModernBert" not in families.FAMILIES, reason="this transformers has no ModernBERT to accelerate")
@torch.no_grad()
def test_layers_of_another_kind_are_an_error():
    with pytest.raises(RuntimeError, match="batch_invariant"):
        held("ModernBert")(torch.tensor([[5, 6, 7]]))
