"""Attention over groups of sequences with gradients: each sequence as if it were alone."""

import pytest
import torch
import torch.nn.functional as F

from bert_fast.ops.attention_groups import AttentionGroups
from bert_fast.ops.attention_rows import Slots, attend_with_dropout

LENGTHS = {
    "padded groups": [5, 20, 33, 20, 7],
    "one group in order": [16, 16],
    "one sequence": [3],
    "empty ones, and one alone": [0, 5, 0, 40, 67, 41],
    "each alone": [30, 60],
}


def one_by_one(x, bounds, key_mask):
    """The definition: PyTorch's attention of every sequence by itself."""
    outputs = []
    for a, b in zip(bounds, bounds[1:], strict=False):
        mask = None if key_mask is None else key_mask[None, None, None, a:b]
        outputs.append(F.scaled_dot_product_attention(*(y[a:b].transpose(0, 1)[None] for y in x), attn_mask=mask))
    return torch.cat([out[0].transpose(0, 1) for out in outputs])


@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "some keys"])
@pytest.mark.parametrize("name", LENGTHS)
def test_gradients_are_those_of_sequences_one_by_one(name, masked):
    lengths = LENGTHS[name]
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    key_mask = torch.rand(bounds[-1]) > 0.3 if masked else None
    x = [torch.randn(bounds[-1], 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    out = AttentionGroups(torch.tensor(bounds, dtype=torch.int32), key_mask).attend(*x, None, 0.0)
    upstream = torch.randn_like(out)
    expected = one_by_one(x, bounds, key_mask)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    pairs = zip(torch.autograd.grad(out, x, upstream), torch.autograd.grad(expected, x, upstream), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["padded groups", "one sequence"])
def test_dropout_takes_weights_away_and_keeps_the_mean(name):
    """Over many draws the mean is what there is without dropout, for results and gradients; a single draw is not."""
    bounds = [0, *torch.tensor(LENGTHS[name]).cumsum(0).tolist()]
    x = [torch.randn(bounds[-1], 2, 8, requires_grad=True) for _ in range(3)]
    groups = AttentionGroups(torch.tensor(bounds, dtype=torch.int32))
    expected = groups.attend(*x, None, 0.0)
    wanted = torch.autograd.grad(expected.sum(), x[2])[0]
    draws = [groups.attend(*x, None, 0.3) for _ in range(200)]
    gradients = [torch.autograd.grad(draw.sum(), x[2])[0] for draw in draws]
    assert not torch.allclose(draws[0], expected, atol=1e-3)
    for found, truth in ((torch.stack(draws), expected), (torch.stack(gradients), wanted)):
        bound = 6 * found.std(0) / len(draws) ** 0.5 + 1e-5
        assert ((found.mean(0) - truth).abs() <= bound).all()


@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "padding"])
def test_attention_with_dropout_of_nothing_is_attention(masked):
    q, k, v = (torch.randn(2, 3, 9, 4, dtype=torch.float64) for _ in range(3))
    seen = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    seen[0, ..., 5:] = False
    mask = seen if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.7)
    torch.testing.assert_close(attend_with_dropout(q, k, v, mask, 0.7, 0.0), expected, rtol=0, atol=1e-13)


def test_slots_are_linear_maps_with_their_gradients():
    """Backward, forward and second derivatives; padding slots give none and get none."""
    rows, slot_of_row = torch.tensor([2, 0, 1, 0]), torch.tensor([1, 2, 0])
    slots = Slots(rows, torch.tensor([True, True, True, False]), slot_of_row)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def there_and_back(x):
        return slots.collect(slots.spread(x) * torch.arange(1.0, 5.0, dtype=torch.float64)[:, None]).square()

    assert torch.autograd.gradcheck(there_and_back, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(there_and_back, x)
