"""One step of Adam or LAMB in plain PyTorch, tensor by tensor as the papers write it: the kernel's fallback and oracle.

LAMB: You et al. (2020), arXiv 1904.00962, algorithm 2. AdamW: Loshchilov and Hutter (2019), arXiv 1711.05101; without
bias correction it is the ``AdamWeightDecayOptimizer`` that BERT was trained with (google-research/bert).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamRule:
    """How a step is made.

    Attributes:
        lr: the learning rate, a number or a tensor of one element.
        decoupled: decay is added to the update (AdamW, LAMB); otherwise to the gradient (Adam with L2).
        adapt: LAMB: a tensor moves by ``lr * ||w|| / ||update||`` times its update; otherwise by ``lr`` times it.
        trust_bounds: between which LAMB's ratio is clamped.
    """

    lr: float | Tensor
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    bias_correction: bool = True
    decoupled: bool = True
    adapt: bool = False
    trust_bounds: tuple[float, float] = (0.0, math.inf)


@dataclass(frozen=True)
class AdamTensors:
    """One parameter, its gradient and its state, all of one shape; ``step`` is one float.

    ``master`` is the weight in float32 behind a 16-bit ``param``, or None: the parameter is the weight itself.
    """

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    master: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """What the step moves."""
        return self.param if self.master is None else self.master

    def written(self) -> Iterator[Tensor]:
        """What a step changes, ``step`` apart."""
        yield from (self.param, self.exp_avg, self.exp_avg_sq)
        if self.master is not None:
            yield self.master


# The tensors of a group share its rule; there is at least one.
AdamGroup = tuple[AdamRule, Sequence[AdamTensors]]


def adam_step(
    groups: Sequence[AdamGroup],
    *,
    max_grad_norm: float | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> Tensor | None:
    """One step of every tensor of every group, in place.

    Args:
        max_grad_norm: clip the gradients to this norm, taken over all groups, as ``torch.nn.utils.clip_grad_norm_``
            does, a norm that is not finite included: NaN makes every weight NaN, infinity counts finite gradients as 0.
        grad_scale: what gradients are divided by first.
        found_inf: with anything but 0 in it nothing is changed.

    Returns:
        The norm before clipping; None without ``max_grad_norm``. The gradients themselves are left as they are.
    """
    begun = begin(groups, max_grad_norm, grad_scale, found_inf)
    if begun is None:
        return None
    norm, factor = begun
    for rule, tensors in groups:
        for t in tensors:
            update_tensor(rule, t, factor)
    return norm


def begin(
    groups: Sequence[AdamGroup], max_grad_norm: float | None, grad_scale: Tensor | None, found_inf: Tensor | None
) -> tuple[Tensor | None, Tensor | None] | None:
    """Count the step; the gradients' norm, and what they are to be multiplied by. None if nothing is to be done."""
    if found_inf is not None and found_inf.item():
        return None
    norm = None
    factor = None if grad_scale is None else 1 / grad_scale
    if max_grad_norm is not None:
        norm = global_norm([t.grad for _, tensors in groups for t in tensors])
        norm = norm if factor is None else norm * factor.to(norm.device)
        clip = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        factor = clip if factor is None else clip * factor.to(clip.device)
    for _, tensors in groups:
        for t in tensors:
            t.step.add_(1)
    return norm, factor


def global_norm(grads: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients as one vector, in at least float32, on the first one's device."""
    norms = [torch.linalg.vector_norm(g, dtype=_wide(g.dtype)).to(grads[0].device) for g in grads]
    return torch.linalg.vector_norm(torch.stack(norms))


def update_tensor(rule: AdamRule, t: AdamTensors, factor: Tensor | None = None) -> None:
    """The step of one tensor whose ``step`` already counts it, its gradient taken times ``factor``."""
    wide = _wide(t.param.dtype)
    beta1, beta2 = rule.betas
    w, g, m, v = (x.to(wide) for x in (t.weight, t.grad, t.exp_avg, t.exp_avg_sq))
    if factor is not None:
        g = g * factor.to(g.device, g.dtype)
    if not rule.decoupled and rule.weight_decay:
        g = g + rule.weight_decay * w
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    _store(t.exp_avg, m)
    _store(t.exp_avg_sq, v)
    m, v = t.exp_avg.to(wide), t.exp_avg_sq.to(wide)
    if rule.bias_correction:
        update = (m / _correction(beta1, t.step)).div_((v / _correction(beta2, t.step)).sqrt_().add_(rule.eps))
    else:
        update = m / v.sqrt().add_(rule.eps)
    if rule.decoupled and rule.weight_decay:
        update.add_(w, alpha=rule.weight_decay)
    rate = rule.lr.reshape(()) if isinstance(rule.lr, Tensor) else rule.lr
    if rule.adapt:
        rate = rate * trust_ratio(rule, w, update)
    w = w.sub_(update.mul_(rate))
    _store(t.weight, w)
    if t.master is not None:
        t.param.copy_(w)


def trust_ratio(rule: AdamRule, w: Tensor, update: Tensor) -> Tensor:
    """``||w|| / ||update||`` within the rule's bounds; 1 where one of the norms is 0 or not a number."""
    weight_norm, update_norm = (torch.linalg.vector_norm(x) for x in (w, update))
    if hasattr(weight_norm, "full_tensor"):  # of a DTensor: one exchange for both, or each use below makes its own
        weight_norm, update_norm = torch.stack((weight_norm, update_norm)).full_tensor()
    ratio = (weight_norm / update_norm).clamp(*rule.trust_bounds)
    return torch.where((weight_norm > 0) & (update_norm > 0), ratio, torch.ones_like(ratio))


def _correction(beta: float, step: Tensor) -> Tensor | float:
    """``1 - beta ** step``, without waiting for a device."""
    if step.device.type == "cpu":
        return 1 - beta ** step.item()
    return 1 - beta ** step.double()


def _store(target: Tensor, value: Tensor) -> None:
    # In its own dtype a tensor was computed on in place.
    if value is not target:
        target.copy_(value)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
