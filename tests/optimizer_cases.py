"""Lists of tensors for the optimizers' kernels, on any device, and the judgement of a step over them."""

import itertools

import torch
from numerics import assert_close_to_truth

from bert_fast import reference_optim
from bert_fast.ops import lamb
from bert_fast.reference_optim import AdamRule, AdamTensors

CHUNK = 16384
TERMS = 64  # of the norms' squares a thread adds up one after the other; what follows is a tree
RULES = {
    "lamb": AdamRule(0.02, weight_decay=0.01, adapt=True),
    "lamb, clamped, uncorrected": AdamRule(
        0.02, weight_decay=0.1, adapt=True, bias_correction=False, trust_bounds=(0.1, 0.3)
    ),
    "lamb, l2": AdamRule(0.02, weight_decay=0.1, adapt=True, decoupled=False),
    "adamw": AdamRule(0.02, weight_decay=0.1, eps=1e-8),
    "google": AdamRule(0.02, weight_decay=0.1, bias_correction=False),
}
DTYPES = {
    "float32": (torch.float32, torch.float32, False),
    "float32, bfloat16 moment": (torch.float32, torch.bfloat16, False),
    "bfloat16": (torch.bfloat16, torch.float32, False),
    "bfloat16, master": (torch.bfloat16, torch.float32, True),
    "bfloat16, all": (torch.bfloat16, torch.bfloat16, True),
    "float16, master": (torch.float16, torch.float32, True),
}


def randn(numel, shift, dtype, generator, scale=1.0):
    """``numel`` elements that begin ``shift`` elements behind an aligned address."""
    storage = torch.randn(numel + shift, generator=generator, device=generator.device) * scale
    return storage.to(dtype)[shift:]


def tensors_of(sizes, kind="float32", shift=0, seed=0, device="cuda"):
    dtype, moment, master = DTYPES[kind]
    generator = torch.Generator(device).manual_seed(seed)
    made = []
    for numel in sizes:
        param, grad = (randn(numel, shift, dtype, generator) for _ in range(2))
        exp_avg = randn(numel, shift, moment, generator, 0.1)
        exp_avg_sq = randn(numel, shift, torch.float32, generator, 0.01).abs_()
        weight = randn(numel, shift, torch.float32, generator, 1e-4).add_(param) if master else None
        step = torch.full((), 3.0, device=device)
        made.append(AdamTensors(param, grad, exp_avg, exp_avg_sq, step, weight))
    return made


def copied(tensors, dtype=None):
    def one(x):
        return None if x is None else x.detach().to(dtype or x.dtype, copy=True)

    return [
        AdamTensors(*(one(x) for x in (t.param, t.grad, t.exp_avg, t.exp_avg_sq)), t.step.clone(), one(t.master))
        for t in tensors
    ]


def check(tensors, rules, steps=2, **options):
    """``rules`` in turn over the list, as many groups as there are."""

    def groups(of):
        return [(rule, of[i :: len(rules)]) for i, rule in enumerate(rules)]

    eager, exact = copied(tensors), copied(tensors, torch.float64)
    for _ in range(steps):
        norm = lamb.adam_step(groups(tensors), **options)
        for given in (eager, exact):
            expected = reference_optim.adam_step(groups(given), **options)
        if norm is not None:
            torch.testing.assert_close(norm.double(), expected.double(), rtol=1e-5, atol=0)
    assert all(torch.equal(t.step, plain.step) for t, plain in zip(tensors, eager, strict=True))
    for name in ("param", "exp_avg", "exp_avg_sq", "master"):
        for dtype in {x.dtype for t in tensors if (x := getattr(t, name)) is not None}:
            chosen = [getattr(t, name) is not None and getattr(t, name).dtype == dtype for t in tensors]
            lists = [list(itertools.compress(of, chosen)) for of in (tensors, eager, exact)]
            # As one vector: in a tensor of one element a moment can cancel, and nothing could be said of its error.
            values = [torch.cat([getattr(t, name).flatten() for t in of]) for of in lists]
            assert_close_to_truth(*values, dtype, TERMS, name)


def ragged(count):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 3000, (count,), generator=generator).tolist()
