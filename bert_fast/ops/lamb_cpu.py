"""LAMB and Adam on the CPU: PyTorch's fused Adam makes the moments and the update in one pass over memory.

Measured on two cores over MiniLM's 22.6 million weights: LAMB 29 ms a step, 11 of them in the fused kernel, against 65
of plain ops one after the other and 97 of ``torch._foreach``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bert_fast import reference_optim
from bert_fast.reference_optim import AdamGroup, AdamRule, AdamTensors


def runs_fused(rule: AdamRule, t: AdamTensors) -> bool:
    """Whether PyTorch's fused kernel computes this very step: everything float32, one layout, decay decoupled."""
    everything = (*t.written(), t.grad)
    return (
        hasattr(torch, "_fused_adamw_")
        and t.master is None
        and t.step.dtype == torch.float32
        and (rule.decoupled or rule.weight_decay == 0)
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in everything)
        and all(x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous() for x in everything)
    )


def adam_step(
    groups: Sequence[AdamGroup], max_grad_norm: float | None, grad_scale: Tensor | None, found_inf: Tensor | None
) -> Tensor | None:
    """As :func:`bert_fast.reference_optim.adam_step`, tensors that :func:`runs_fused` refuses by the reference."""
    begun = reference_optim.begin(groups, max_grad_norm, grad_scale, found_inf)
    if begun is None:
        return None
    norm, factor = begun
    for rule, tensors in groups:
        for t in tensors:
            if runs_fused(rule, t):
                _update(rule, t, factor)
            else:
                reference_optim.update_tensor(rule, t, factor)
    return norm


def _update(rule: AdamRule, t: AdamTensors, factor: Tensor | None) -> None:
    grad = t.grad if factor is None or factor.item() == 1 else t.grad * factor.to(t.grad.dtype)
    lr = float(rule.lr)
    if not rule.adapt and not rule.weight_decay:
        return _fused(rule, t, t.param, grad, lr)
    # From 0, with a rate of -1, Adam arrives at its update. Decay joins it before the weight is rounded: by itself, as
    # in PyTorch's AdamW, it would be rounded the same way step after step (1.3e-4 off after 1,000 steps, not 9e-6).
    update = torch.zeros_like(t.param)
    _fused(rule, t, update, grad, -1.0)
    if rule.weight_decay:
        update.add_(t.param, alpha=rule.weight_decay)
    ratio = reference_optim.trust_ratio(rule, t.param, update).item() if rule.adapt else 1.0
    t.param.add_(update, alpha=-lr * ratio)
    return None


def _fused(rule: AdamRule, t: AdamTensors, param: Tensor, grad: Tensor, lr: float) -> None:
    # After infinitely many steps there is nothing to correct.
    step = t.step if rule.bias_correction else torch.full_like(t.step, math.inf)
    torch._fused_adamw_(
        [param],
        [grad],
        [t.exp_avg],
        [t.exp_avg_sq],
        [],
        [step],
        lr=lr,
        beta1=rule.betas[0],
        beta2=rule.betas[1],
        weight_decay=0.0,
        eps=rule.eps,
        amsgrad=False,
        maximize=False,
    )
