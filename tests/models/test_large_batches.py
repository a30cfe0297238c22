"""Batches of thousands of tokens, which CPU inference takes some hundred rows at a time."""

import pytest
import torch
from numerics import assert_close_to_truth
from torch import nn
from twins import TINY, double, ours, twins

from bert_fast import PackedBatch
from bert_fast.ops import attention_groups

POSITIONS = 700
LENGTHS = {
    "many_short": [3 + 7 * i % 29 for i in range(120)],
    "one_longer_than_a_part": [700, 5, 690, 1],
    "exactly_a_part": [512, 256, 256, 128, 512],
    "with_hidden_rows": [40] * 10 + [0] * 5 + [300] * 3,
}


def padded_batch(lengths, side="right"):
    generator = torch.Generator().manual_seed(0)
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    if side == "left":
        mask = mask.flip(1)
    if side == "holes":
        mask = mask * (torch.rand(mask.shape, generator=generator) < 0.8)
    ids = torch.randint(0, TINY["vocab_size"], mask.shape, generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("cpu_linear", ["onednn", "torch"], indirect=True)
def test_they_hold_the_contract(cpu_linear, lengths, side):
    mine, theirs = twins(max_position_embeddings=POSITIONS)
    arguments = padded_batch(LENGTHS[lengths], side)
    visible = arguments["attention_mask"].bool()
    rows = visible.any(1)
    with torch.no_grad():
        output = mine(**arguments, output_hidden_states=True)
        # transformers does with all-masked rows what it does; they stay out of its batch.
        shown = {k: v[rows] for k, v in arguments.items()}
        eager, truth = (m(**shown, output_hidden_states=True) for m in (theirs, double(theirs)))
    states = zip(output.hidden_states, eager.hidden_states, truth.hidden_states, strict=True)
    for got, want, exact in states:
        assert_close_to_truth(got[visible], want[visible[rows]], exact[visible[rows]], torch.float32, 90)
        assert (got[~visible] == 0).all()
    assert torch.equal(output[0], output.hidden_states[-1])
    assert_close_to_truth(output[1][rows], eager[1], truth[1], torch.float32, 90)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("hidden", ["zero", "exact"])
def test_gradient_and_inference_agree(hidden, lengths):
    model = ours(max_position_embeddings=POSITIONS)
    arguments = {**padded_batch(LENGTHS[lengths], "holes"), "hidden_positions": hidden}
    with_grad = model(**arguments)
    with torch.no_grad():
        without = model(**arguments)
    for left, right in zip(with_grad.to_tuple(), without.to_tuple(), strict=True):
        assert torch.allclose(left, right, rtol=0, atol=2e-5)


def test_a_sequence_has_the_same_numbers_in_any_batch():
    model = ours(max_position_embeddings=POSITIONS)
    sequences = [torch.randint(0, 101, (n,)).tolist() for n in LENGTHS["many_short"]]
    with torch.no_grad():
        together = model(PackedBatch.from_sequences(sequences))[0].split([len(s) for s in sequences])
        for index in (0, 50, 119):
            alone = model(PackedBatch.from_sequences([sequences[index]]))[0]
            assert torch.allclose(together[index], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cpu_linear", ["onednn"], indirect=True)
def test_poison_in_one_sequence_stays_there(cpu_linear):
    model = ours(max_position_embeddings=POSITIONS)
    lengths = LENGTHS["many_short"]
    batch = PackedBatch.from_sequences([[1] * n for n in lengths])
    embeds = torch.randn(sum(lengths), TINY["hidden_size"])
    start = int(batch.cu_seqlens[60])
    outputs = []
    for poison in (0.0, float("nan")):
        x = embeds.clone()
        x[start : start + lengths[60]] += poison
        values = {"cu_seqlens": batch.cu_seqlens, "max_seqlen": batch.max_seqlen, "position_ids": batch.position_ids}
        with torch.no_grad():
            outputs.append(model(PackedBatch(input_ids=None, inputs_embeds=x, **values))[0])
    others = torch.ones(sum(lengths), dtype=torch.bool)
    others[start : start + lengths[60]] = False
    assert torch.equal(outputs[0][others], outputs[1][others])
    assert outputs[1][~others].isnan().all()


@pytest.mark.parametrize("cpu_linear", ["onednn"], indirect=True)
def test_hooks_see_a_batch_whole_and_once(cpu_linear):
    model = ours(max_position_embeddings=POSITIONS)
    arguments = padded_batch(LENGTHS["many_short"])
    with torch.no_grad():
        expected = model(**arguments)[0]
        seen = []
        handle = model.encoder.layer[1].register_forward_hook(lambda m, args, out: seen.append(out.shape[0]))
        hooked = model(**arguments)[0]
        handle.remove()
        dropped = nn.Dropout(0.5).train()
        model.encoder.layer[0].output.dropout = dropped
        assert not torch.allclose(model(**arguments)[0], expected, atol=1e-2)
    assert seen == [sum(LENGTHS["many_short"])]
    assert torch.allclose(hooked, expected, rtol=0, atol=1e-5)


def test_groups_waste_little(monkeypatch):
    """Sequences of similar length share a call: less than a granule of padding for each."""
    lengths = torch.tensor(LENGTHS["many_short"])
    groups = attention_groups.AttentionGroups(torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32))
    calls, attend = [], torch.nn.functional.scaled_dot_product_attention

    def count(q, k, v, **options):
        calls.append(q.shape[0] * q.shape[2])
        return attend(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    q = torch.randn(int(lengths.sum()), 2, 4)
    groups.attend(q, q, q, None, 0.0)
    assert sum(calls) - q.shape[0] < attention_groups.GRANULE * len(lengths)
    assert len(calls) <= -(-int(lengths.max()) // attention_groups.GRANULE)
