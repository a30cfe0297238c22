"""What hidden positions return, and that nothing in them, however poisonous, reaches a visible one."""

import math

import pytest
import torch
from numerics import assert_close_to_truth
from twins import LENGTHS, TINY, B, S, batch, config, double, ours, padding, randomize, twins

import bert_fast

H = TINY["hidden_size"]
PADDINGS = ["right", "left", "both_sides", "holes", "one_row_all_masked"]


@pytest.mark.parametrize("padded", PADDINGS)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_zero_is_the_default_and_returns_zeros(padded, grad):
    mask = padding(padded)
    with torch.set_grad_enabled(grad):
        output = ours()(**batch(mask), output_hidden_states=True)
    for state in (output.last_hidden_state, *output.hidden_states):
        assert state.shape == (B, S, H)
        assert (state[mask == 0] == 0).all()
        assert (state[mask == 1] != 0).any(-1).all()


@pytest.mark.parametrize("padded", PADDINGS)
def test_visible_positions_are_the_same_under_zero_and_exact(padded):
    mask = padding(padded)
    zero, exact = (ours()(**batch(mask), hidden_positions=h) for h in ("zero", "exact"))
    assert torch.allclose(zero[0][mask == 1], exact[0][mask == 1], rtol=0, atol=1e-5)
    assert torch.allclose(zero[1], exact[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("where", ["config", "call"])
def test_exact_is_chosen_by_config_or_call(where):
    mask = padding("holes")
    model = ours(hidden_positions="exact") if where == "config" else ours()
    output = model(**batch(mask), **({} if where == "config" else {"hidden_positions": "exact"}))
    assert (output[0][mask == 0] != 0).any(-1).all()


@pytest.mark.parametrize("padded", ["left", "holes"])
def test_left_padded_pooler_reads_the_hidden_first_place_as_transformers_does(padded):
    mine, theirs = twins()
    mask = padding(padded)
    assert (mask[:, 0] == 0).any()
    with torch.no_grad():
        eager, truth = theirs(**batch(mask)), double(theirs)(**batch(mask))
        for _ in range(2):
            assert_close_to_truth(mine(**batch(mask))[1], eager[1], truth[1], torch.float32, S)


POISON = {"nan": math.nan, "inf": math.inf, "minus_inf": -math.inf, "largest": torch.finfo(torch.float32).max}


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("padded", PADDINGS)
@pytest.mark.parametrize("hidden", ["zero", "exact"])
@pytest.mark.parametrize("mode", ["grad", "no_grad", "attentions"])
def test_nan_or_inf_in_hidden_positions_never_leaks_forward(mode, hidden, padded, poison):
    mask = padding(padded)
    clean = torch.randn(B, S, H)
    dirty = clean.masked_fill((mask == 0)[..., None], POISON[poison])
    model = ours()
    with torch.set_grad_enabled(mode == "grad"):
        outputs = [
            model(
                inputs_embeds=x,
                attention_mask=mask,
                hidden_positions=hidden,
                output_attentions=mode == "attentions",
                output_hidden_states=True,
            )
            for x in (clean, dirty)
        ]
    for want, got in zip(outputs[0].hidden_states, outputs[1].hidden_states, strict=True):
        assert torch.equal(got[mask == 1], want[mask == 1])
        if hidden == "zero":
            assert (got[mask == 0] == 0).all()


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("padded", PADDINGS)
@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "not_pooled"])
def test_nan_or_inf_in_hidden_positions_never_leaks_backward(padded, poison, pooled):
    """A pooler reads the first place even if it is hidden: there the poison is an input like any other."""
    mask = padding(padded)
    if pooled:
        mask[:, 0] = 1
    clean = torch.randn(B, S, H)
    grads = []
    for x in (clean, clean.masked_fill((mask == 0)[..., None], POISON[poison])):
        model = randomize(bert_fast.BertModel(config(), add_pooling_layer=pooled))
        x = x.clone().requires_grad_()
        output = model(inputs_embeds=x, attention_mask=mask)
        sum(v.square().sum() for v in output.to_tuple()).backward()
        grads.append([x.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    for want, got in zip(*grads, strict=True):
        assert torch.equal(got, want)


def test_poisoned_4d_masked_keys_do_not_leak():
    """A key that a 4D mask hides from all is computed, so its row may hold anything but must weigh nothing."""
    model, clean = ours(), torch.randn(B, S, H)
    mask = padding("right").bool()[:, None, None].expand(-1, -1, S, -1)
    visible = padding("right").bool()
    dirty = clean + ~visible[..., None] * 1e4
    outputs = [model(inputs_embeds=x, attention_mask=mask)[0] for x in (clean, dirty)]
    assert torch.equal(outputs[0][visible], outputs[1][visible])


@pytest.mark.parametrize("amount", [0, 1, 7, 23])
@pytest.mark.parametrize("side", ["left", "right", "holes"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_padding_of_any_amount_on_any_side_does_not_change_real_tokens(side, amount, grad):
    model = ours()
    generator = torch.Generator().manual_seed(9)
    sequences = [torch.randint(0, 101, (length,), generator=generator) for length in LENGTHS]
    total = max(LENGTHS) + amount
    ids = torch.randint(0, 101, (B, total), generator=generator)
    mask, positions = torch.zeros(B, total, dtype=torch.long), torch.zeros(B, total, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        places = torch.arange(len(sequence))
        if side == "left":
            places = places + total - len(sequence)
        elif side == "holes":
            places = torch.randperm(total, generator=generator)[: len(sequence)].sort().values
        ids[row, places], mask[row, places], positions[row, places] = sequence, 1, torch.arange(len(sequence))
    with torch.set_grad_enabled(grad):
        output = model(ids, attention_mask=mask, position_ids=positions)
        for row, sequence in enumerate(sequences):
            alone = model(sequence[None])
            assert torch.allclose(output[0][row][mask[row] == 1], alone[0][0], rtol=0, atol=2e-5)
            if mask[row, 0]:
                assert torch.allclose(output[1][row], alone[1][0], rtol=0, atol=1e-5)
