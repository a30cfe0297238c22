"""lamb: one step of LAMB or Adam over many tensors, in a few launches of the CUDA extension."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from bert_fast import backend, extension, reference_optim
from bert_fast.ops import lamb_cpu
from bert_fast.ops.library import KERNEL_DTYPES
from bert_fast.reference_optim import AdamGroup, AdamRule, AdamTensors

_PLAIN = (Tensor, torch.nn.Parameter)


@torch.no_grad()
def adam_step(
    groups: Sequence[AdamGroup],
    *,
    max_grad_norm: float | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> Tensor | None:
    """One step of LAMB or Adam, in place, as :func:`bert_fast.reference_optim.adam_step` describes it.

    The kernel takes tensors that are contiguous, on one GPU, parameter and gradient of one dtype (float32, float16 or
    bfloat16), ``exp_avg`` float32 or bfloat16, ``exp_avg_sq``, ``step`` and ``master`` float32. It never waits for the
    GPU and can be captured in a CUDA graph; PyTorch's ops, which serve all else, wait to read ``found_inf``.

    Returns:
        The gradients' norm before clipping, a tensor of one float on their device; None without ``max_grad_norm``.
    """
    groups = [(rule, list(tensors)) for rule, tensors in groups if tensors]
    options = {"max_grad_norm": max_grad_norm, "grad_scale": grad_scale, "found_inf": found_inf}
    if not groups:
        return None
    device = groups[0][1][0].param.device
    if torch.compiler.is_compiling():
        return reference_optim.adam_step(groups, **options)
    if backend.runs("lamb", "cuda", device, _against(groups, device)):
        norm = _cuda_step(groups, device, **options)
    elif device.type == "cpu" and backend.requested() != "reference":
        norm = lamb_cpu.adam_step(groups, **options)
    else:
        return reference_optim.adam_step(groups, **options)
    # Fused kernels move no version counter, which autograd and derived weights go by.
    torch.autograd.graph.increment_version([x for _, tensors in groups for t in tensors for x in t.written()])
    return norm


def _against(groups: Sequence[AdamGroup], device: torch.device) -> tuple[str, ...]:
    """What speaks against the kernel in these tensors."""
    if device.type != "cuda":
        return ()
    reasons = set()
    for rule, tensors in groups:
        if isinstance(rule.lr, Tensor) and rule.lr.device.type not in ("cpu", "cuda"):
            reasons.add(f"the learning rate is on {rule.lr.device}")
        for t in tensors:
            all_of_it = (*t.written(), t.grad, t.step)
            if any(type(x) not in _PLAIN for x in all_of_it):
                reasons.add("a tensor is of a subclass of torch.Tensor, such as DTensor")
            if any(x.device != device for x in all_of_it):
                reasons.add("the tensors are on several devices")
            if not all(x.is_contiguous() for x in all_of_it):
                reasons.add("a tensor is not contiguous")
            if t.param.dtype not in KERNEL_DTYPES or t.grad.dtype != t.param.dtype:
                reasons.add(f"parameter and gradient are {t.param.dtype} and {t.grad.dtype}")
            if t.exp_avg.dtype not in (torch.float32, torch.bfloat16):
                reasons.add(f"exp_avg is {t.exp_avg.dtype}, not float32 or bfloat16")
            if any(x.dtype != torch.float32 for x in (t.exp_avg_sq, t.step, t.master) if x is not None):
                reasons.add("exp_avg_sq, step or master is not float32")
    return tuple(sorted(reasons))


def _cuda_step(
    groups: Sequence[AdamGroup],
    device: torch.device,
    max_grad_norm: float | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> Tensor | None:
    module = extension.module()
    assert module is not None  # backend.runs has asked
    on = (device.index, torch.cuda.current_stream(device).cuda_stream)
    grad_scale, found_inf = (_scalar(x, device) for x in (grad_scale, found_inf))
    steps = [t.step for _, tensors in groups for t in tensors]
    torch._foreach_add_(steps, 1)
    if found_inf is not None:
        torch._foreach_sub_(steps, [(found_inf != 0).to(torch.float32).reshape(())] * len(steps))
    buckets = [bucket for rule, tensors in groups for bucket in _buckets(rule, tensors)]
    chunks = [sum(-(-t.param.numel() // module.optimizer_chunk()) for t in tensors) for _, tensors in buckets]
    lists = [_addresses(tensors) for _, tensors in buckets]
    norm, factor = None, None if grad_scale is None else grad_scale.reciprocal()
    if max_grad_norm is not None:
        partials = torch.empty(sum(chunks), dtype=torch.float32, device=device)
        first = 0
        for (_, tensors), count, flat in zip(buckets, chunks, lists, strict=True):
            module.square_gradients_cuda(flat, _name(tensors[0].param), partials.data_ptr() + 4 * first, *on)
            first += count
        norm, factor = torch.empty(2, dtype=torch.float32, device=device)
        module.clip_factor_cuda(partials.data_ptr(), first, max_grad_norm, _pointer(grad_scale), norm.data_ptr(), *on)
    for (rule, tensors), count, flat in zip(buckets, chunks, lists, strict=True):
        on_device = isinstance(rule.lr, Tensor) and rule.lr.device.type == device.type
        lr = _scalar(rule.lr, device) if on_device else None
        squares = torch.empty(2 * count if rule.adapt else 0, dtype=torch.float32, device=device)
        module.adam_cuda(
            flat,
            *rule.betas,
            rule.eps,
            rule.weight_decay,
            rule.bias_correction,
            rule.decoupled,
            *rule.trust_bounds,
            _pointer(lr),
            0.0 if lr is not None else float(rule.lr),
            _pointer(factor),
            _pointer(found_inf),
            rule.adapt,
            squares.data_ptr(),
            _name(tensors[0].param),
            _name(tensors[0].exp_avg),
            *on,
        )
    return norm


def _buckets(rule: AdamRule, tensors: Sequence[AdamTensors]) -> list[tuple[AdamRule, list[AdamTensors]]]:
    """The tensors by dtype: one kernel each."""

    def dtypes(t: AdamTensors) -> tuple[str, str]:
        return _name(t.param), _name(t.exp_avg)

    return [(rule, list(bucket)) for _, bucket in groupby(sorted(tensors, key=dtypes), key=dtypes)]


def _addresses(tensors: Sequence[AdamTensors]) -> list[int]:
    flat: list[int] = []
    for t in tensors:
        flat += (t.grad.data_ptr(), t.param.data_ptr(), _pointer(t.master), t.exp_avg.data_ptr())
        flat += (t.exp_avg_sq.data_ptr(), t.step.data_ptr(), t.param.numel())
    return flat


def _scalar(x: Any, device: torch.device) -> Tensor | None:
    """One float32 on the device."""
    return None if x is None else x.to(device=device, dtype=torch.float32, non_blocking=True)


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
