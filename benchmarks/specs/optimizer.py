"""LAMB and AdamW over the tensors of a BERT, in float32: BERT-large's 335 million on a GPU, MiniLM's 23 on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from benchmarks.context import TINY, Context
from benchmarks.specs import peers
from benchmarks.specs.spec import Cost, Provider, Spec, Tensors, missing
from bert_fast import reference_optim
from bert_fast.ops.lamb import adam_step
from bert_fast.reference_optim import AdamGroup, AdamRule, AdamTensors

_LR = 1e-3
_NAMES = ("weights", "grads", "exp_avg", "exp_avg_sq")
_ALIGNED = 64  # elements: a tensor of its own would begin as well aligned


def _shapes(hidden: int, layers: int, vocabulary: int) -> list[tuple[int, ...]]:
    """The weights of a BERT for pretraining."""
    block = [(hidden, hidden), (hidden,)] * 4 + [(hidden,)] * 4
    block += [(4 * hidden, hidden), (4 * hidden,), (hidden, 4 * hidden), (hidden,)]
    around = [(vocabulary, hidden), (512, hidden), (2, hidden), (hidden,), (hidden,), (hidden, hidden), (hidden,)]
    head = [(hidden, hidden), (hidden,), (hidden,), (hidden,), (vocabulary,), (2, hidden), (2,)]
    return around + block * layers + head


def _views(flat: Tensor, shapes: list[tuple[int, ...]]) -> Iterator[Tensor]:
    at = 0
    for shape in shapes:
        count = math.prod(shape)
        yield flat[at : at + count].view(shape)
        at += -(-count // _ALIGNED) * _ALIGNED


def _groups(rule: AdamRule, t: Tensors) -> list[AdamGroup]:
    """Matrices with decay, and adapted if the rule says so; vectors without either."""
    flats = [t[name] for name in _NAMES]
    rows = [
        AdamTensors(*parts, torch.full((), 9.0, device=parts[0].device))
        for parts in zip(*(_views(flat, t["shapes"]) for flat in flats), strict=True)
    ]
    plain = AdamRule(rule.lr, eps=rule.eps)
    return [(rule, [r for r in rows if r.param.ndim > 1]), (plain, [r for r in rows if r.param.ndim <= 1])]


def _change(step: Callable[[Tensors], Any], t: Tensors) -> Tensor:
    """How far a step over copies moves the weights, in units of the learning rate."""
    copies = t | {name: t[name].clone() for name in _NAMES}
    step(copies)
    return (copies["weights"] - t["weights"]) / _LR


def _spec(name: str, rule: AdamRule, limit: float | None, bytes_per_weight: int, context: Context, p: float) -> Spec:
    def make(tokens: int, seed: int) -> Tensors:
        full = tokens == context.sizes.tokens and not context.small
        shapes = _shapes(*(context.sizes.optimizer if full else TINY.optimizer))
        generator = context.generator(seed)
        size = sum(-(-math.prod(shape) // _ALIGNED) * _ALIGNED for shape in shapes)
        flats = {k: torch.randn(size, generator=generator, device=context.device) * 0.02 for k in _NAMES}
        flats["exp_avg_sq"].square_()
        made: Tensors = {**flats, "shapes": shapes, "full": full}
        # Timed steps go on from each other, in place; those that are checked leave their inputs as they were.
        return made | {"groups": _groups(rule, made)} if full else made

    def provider(step: Callable[[Tensors], Any]) -> Callable[[Tensors, float], Tensor]:
        def run(t: Tensors, p: float) -> Tensor:
            if not t["full"]:
                return _change(step, t)
            step(t)
            return t["weights"]

        return run

    def groups(t: Tensors) -> list[AdamGroup]:
        return t["groups"] if "groups" in t else _groups(rule, t)

    def ours(t: Tensors) -> None:
        with context.ours():
            adam_step(groups(t), max_grad_norm=limit)

    def eager(t: Tensors) -> None:
        reference_optim.adam_step(groups(t), max_grad_norm=limit)

    def fused(t: Tensors) -> None:
        for group_rule, tensors in groups(t):
            lists = [[getattr(r, k) for r in tensors] for k in ("param", "grad", "exp_avg", "exp_avg_sq", "step")]
            adamw(
                *lists[:4], [], lists[4], fused=True, amsgrad=False, beta1=0.9, beta2=0.999, lr=_LR,
                weight_decay=group_rule.weight_decay, eps=group_rule.eps, maximize=False,
            )  # fmt: skip

    def costs(t: Tensors) -> dict[str, Cost]:
        return {"forward": Cost(bytes_per_weight * sum(math.prod(shape) for shape in t["shapes"]))}

    def truth(t: Tensors, p: float) -> Tensor:
        return _change(eager, t)

    def apex(t: Tensors) -> None:
        if "apex" not in t:
            t["apex"] = peers.apex_lamb(groups(t), limit or 0.0)
        t["apex"].step()

    others = [Provider("eager", provider(eager))]
    if rule.adapt:
        others.append(Provider("apex FusedLAMB", provider(apex), missing=missing("apex", context)))
    else:
        others.append(Provider("torch fused", provider(fused)))
    providers = (Provider("bert_fast", provider(ours)), *others)
    return Spec(name, make, truth, providers, costs, ("forward",))


# AdamW reads weight, gradient and two moments, and writes all but the gradient: 28 bytes. LAMB needs the tensor's
# norms before it can write the weight, so that weight and moments are read twice, and clipping reads gradients before.
SPECS = {
    "lamb": partial(_spec, "lamb", AdamRule(_LR, weight_decay=0.01, adapt=True), 1.0, 44),
    "adamw": partial(_spec, "adamw", AdamRule(_LR, weight_decay=0.01), None, 28),
}
