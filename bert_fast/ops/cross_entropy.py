"""Rows of cross-entropy: losses, statistics and gradients, each written to where the caller wants it.

On a GPU the extension's kernel reads a row once and keeps it on chip (up to 64 KiB two rows to a multiprocessor, up to
128 KiB one; longer rows are read twice). Elsewhere PyTorch's ops do the same in as little memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast import backend, extension
from bert_fast.ops import id_checks
from bert_fast.ops.library import below_autograd, define, dtype_reasons, valueless

# Rows whose stride is this much longer than the row still give their layout to the gradient.
_MOST_PADDING = 512


@dataclass(frozen=True)
class LossRule:
    """What the loss of a row is; see :func:`bert_fast.reference.cross_entropy`."""

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0


def kernel_runs(logits: Tensor) -> bool:
    """Whether the extension's kernel serves rows like ``logits [R, V]`` now."""
    against = dtype_reasons(logits=logits)
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(logits):
        against.append("the logits are inside torch.func")
    if not torch.compiler.is_compiling() and valueless(logits):
        against.append("the logits have no values")
    return backend.runs("cross_entropy", "cuda", logits.device, tuple(against))


def write_rows(
    logits: Tensor,
    labels: Tensor,
    rule: LossRule,
    *,
    on_kernel: bool,
    losses: Tensor | None = None,
    statistics: Tensor | None = None,
    grad: Tensor | None = None,
    known: Tensor | None = None,
    upstream: Tensor | None = None,
    inverse_count: Tensor | None = None,
    factor: float = 1.0,
    skip_ones: bool = False,
) -> None:
    """Write what is given of ``losses [R]``, ``statistics [R, 2]`` and ``grad [R, V]``, which may be ``logits`` itself.

    A row's statistics are its largest logit and the sum of ``exp(logit - largest)``. An ignored row has a loss, a
    gradient and statistics of 0, whatever it holds. A label outside
    ``0 .. V - 1`` is ignored too; the kernel leaves a report for :func:`bert_fast.ops.unpad`.

    Args:
        logits: ``[R, V]``, its last stride 1.
        labels: int64 ``[R]``.
        on_kernel: of :func:`kernel_runs`.
        known: statistics of an earlier call; then neither ``losses`` nor ``statistics`` are written.
        upstream: ``[R]`` of any stride, the gradients of the losses; ones by default.
        inverse_count, factor: of one element, and a number: more factors of the gradient.
        skip_ones: ``grad`` holds the gradient for an upstream of 1 already: write the others' only.
    """
    if not on_kernel:
        _write_rows_in_torch(logits, labels, rule, losses, statistics, grad, known, upstream, inverse_count, factor)
        return
    labels = labels.contiguous()  # held until the launch: its address is all that the kernel gets
    address = {
        name: 0 if x is None else x.data_ptr()
        for name, x in {
            "logits": logits,
            "labels": labels,
            "known": known,
            "upstream": upstream,
            "inverse_count": inverse_count,
            "losses": losses,
            "statistics": statistics,
            "grad": grad,
        }.items()
    }
    extension.module().cross_entropy_cuda(
        **address,
        rows=logits.shape[0],
        classes=logits.shape[1],
        logits_stride=logits.stride(0),
        grad_stride=logits.stride(0) if grad is None else grad.stride(0),
        upstream_stride=0 if upstream is None else upstream.stride(0),
        ignore_index=rule.ignore_index,
        smoothing=rule.label_smoothing,
        z_loss=rule.z_loss,
        factor=factor,
        skip_ones=skip_ones,
        dtype=str(logits.dtype).removeprefix("torch."),
        bad_id=id_checks.bad_id_flag(logits.device).data_ptr(),
        device=logits.device.index,
        stream=torch.cuda.current_stream(logits.device).cuda_stream,
    )


def _write_rows_in_torch(
    logits, labels, rule, losses, statistics, grad, known, upstream, inverse_count, factor
) -> None:
    dtype, classes = torch.promote_types(logits.dtype, torch.float32), logits.shape[1]
    smoothing = rule.label_smoothing
    kept = ((labels != rule.ignore_index) & (labels >= 0) & (labels < classes)).unsqueeze(1)
    index = torch.where(kept, labels.unsqueeze(1), 0)
    at_label = logits.gather(1, index).to(dtype)
    total = logits.sum(1, keepdim=True, dtype=dtype) if smoothing and losses is not None else None
    top = logits.amax(1, keepdim=True).to(dtype) if known is None else known[:, :1]
    # In place where the dtypes allow it: nothing of the size of the logits is made.
    work = grad if grad is not None and grad.dtype == dtype else torch.empty(logits.shape, **_like(top))
    torch.sub(logits, top, out=work).exp_()
    sums = work.sum(1, keepdim=True) if known is None else known[:, 1:]
    lse = top + sums.log()
    if losses is not None:
        value = sums.log() + (top - at_label) * (1 - smoothing)
        value = value if total is None else value + smoothing * (top - total / classes)
        value = value + rule.z_loss * lse.square() if rule.z_loss else value
        losses.copy_(value.masked_fill(~kept, 0).squeeze(1))
    if statistics is not None:
        statistics.copy_(torch.cat([top, sums], 1).masked_fill(~kept, 0))
    if grad is None:
        return
    scale = torch.full_like(top, factor)
    for other in (upstream, inverse_count):
        scale = scale if other is None else scale * other.to(dtype).view(-1, 1)
    extra = 2 * rule.z_loss * lse if rule.z_loss else 0
    work.mul_(scale * (1 + extra) / sums)
    if smoothing:
        work.sub_(scale * (smoothing / classes))
    work.scatter_add_(1, index, -scale * (1 - smoothing))
    if work.device.type != "cpu" or not kept.all():
        work.masked_fill_(~kept, 0)
    if work is not grad:
        grad.copy_(work)


def with_unit_columns(logits: Tensor) -> Tensor:
    """``logits [R, V]`` itself, or a copy where its last stride is not 1."""
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


def gradient_like(logits: Tensor) -> Tensor:
    """An uninitialised gradient that lies in memory as the logits do, so that one cut into vectors fits both."""
    rows, classes = logits.shape
    padded = classes <= logits.stride(0) <= classes + _MOST_PADDING
    return torch.empty_strided((rows, classes), (logits.stride(0) if padded else classes, 1), **_like(logits))


def _like(x: Tensor) -> dict[str, Any]:
    return {"dtype": x.dtype, "device": x.device}


def inverse_count(labels: Tensor, ignore_index: int, dtype: torch.dtype, on_kernel: bool) -> Tensor:
    """1 / the number of labels that are not ignored, at least 1: ``[1]``, without waiting for the device."""
    if not on_kernel:
        return (labels != ignore_index).sum().clamp(min=1).to(dtype).reciprocal().view(1)
    labels = labels.contiguous()
    inverse = torch.empty(1, dtype=torch.float32, device=labels.device)
    stream = torch.cuda.current_stream(labels.device).cuda_stream
    arguments = (labels.data_ptr(), labels.shape[0], ignore_index, inverse.data_ptr(), labels.device.index, stream)
    extension.module().cross_entropy_count_cuda(*arguments)
    return inverse


def summed(losses: Tensor, inverse: Tensor | None, on_kernel: bool) -> Tensor:
    """The sum of ``losses [R]``, times ``inverse [1]`` if it is given: a scalar."""
    if not on_kernel:
        total = losses.sum()
        return total if inverse is None else total * inverse.view(())
    out = torch.empty((), dtype=torch.float32, device=losses.device)
    stream = torch.cuda.current_stream(losses.device).cuda_stream
    addresses = (losses.data_ptr(), losses.shape[0], 0 if inverse is None else inverse.data_ptr(), out.data_ptr())
    extension.module().cross_entropy_sum_cuda(*addresses, losses.device.index, stream)
    return out


class FusedCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one read of the logits: the forward pass writes the gradient for an upstream of 1.

    The backward pass has nothing left to do where the upstream is 1, as it is for a loss that training calls
    ``backward()`` on; the device finds out, the host does not wait. Any other upstream makes the gradient anew, from
    the logits and not by a product: in float16 most of a mean's gradient underflows before a gradient scaler's factor
    has reached it. So does every further backward pass over the same graph.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, rule: LossRule, reduction: str, on_kernel: bool, with_grad: bool
    ) -> Tensor:
        logits = with_unit_columns(logits)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        losses = torch.empty(logits.shape[0], dtype=dtype, device=logits.device)
        statistics = torch.empty(logits.shape[0], 2, dtype=dtype, device=logits.device)
        inverse = inverse_count(labels, rule.ignore_index, dtype, on_kernel) if reduction == "mean" else None
        grad = gradient_like(logits) if with_grad else None
        outputs = {"losses": losses, "statistics": statistics, "grad": grad}
        write_rows(logits, labels, rule, on_kernel=on_kernel, inverse_count=inverse, **outputs)
        ctx.save_for_backward(logits, labels, statistics, inverse)
        ctx.rule, ctx.on_kernel, ctx.grad = rule, on_kernel, grad
        return losses if reduction == "none" else summed(losses, inverse, on_kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        logits, labels, statistics, inverse = ctx.saved_tensors
        held, ctx.grad = ctx.grad, None  # whoever gets it may write to it
        grad = gradient_like(logits) if held is None else held
        write_rows(
            logits,
            labels,
            ctx.rule,
            on_kernel=ctx.on_kernel,
            known=statistics,
            upstream=upstream.expand(logits.shape[0]),
            inverse_count=inverse,
            grad=grad,
            skip_ones=held is not None,
        )
        return grad, *[None] * 5


def fused_cross_entropy(logits: Tensor, labels: Tensor, rule: LossRule, reduction: str, on_kernel: bool) -> Tensor:
    """Loss of ``logits [R, V]`` and int64 ``labels [R]``, a scalar or ``[R]``; see :class:`FusedCrossEntropy`."""
    with_grad = torch.is_grad_enabled() and logits.requires_grad
    return FusedCrossEntropy.apply(logits, labels, rule, reduction, on_kernel, with_grad)


# What torch.compile traces: no gradient before its upstream is known, and nothing that is changed in place.


def _forward(logits, labels, ignore_index, label_smoothing, z_loss):
    logits = with_unit_columns(logits)
    losses, statistics = (torch.empty_like(x) for x in _fake(logits, labels, ignore_index, label_smoothing, z_loss))
    rule = LossRule(ignore_index, label_smoothing, z_loss)
    write_rows(logits, labels, rule, on_kernel=logits.device.type == "cuda", losses=losses, statistics=statistics)
    return losses, statistics


def _fake(logits, labels, ignore_index, label_smoothing, z_loss):
    dtype = torch.promote_types(logits.dtype, torch.float32)
    rows = logits.shape[0]
    return logits.new_empty(rows, dtype=dtype), logits.new_empty(rows, 2, dtype=dtype)


def _backward(upstream, logits, labels, statistics, ignore_index, label_smoothing, z_loss):
    logits = with_unit_columns(logits)
    grad = torch.empty(logits.shape, **_like(logits))
    rule = LossRule(ignore_index, label_smoothing, z_loss)
    on_kernel = logits.device.type == "cuda"
    write_rows(logits, labels, rule, on_kernel=on_kernel, known=statistics, upstream=upstream, grad=grad)
    return grad


def _backward_fake(upstream, logits, labels, statistics, ignore_index, label_smoothing, z_loss):
    return torch.empty(logits.shape, **_like(logits))


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits, labels, ignore_index, label_smoothing, z_loss) -> tuple[Tensor, Tensor]:
        ctx.rule = (ignore_index, label_smoothing, z_loss)
        losses, statistics = below_autograd(row_losses, logits, labels, *ctx.rule)
        ctx.save_for_backward(logits, labels, statistics)
        ctx.mark_non_differentiable(statistics)
        return losses, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple:
        return _row_losses_grad(upstream, *ctx.saved_tensors, *ctx.rule), None, None, None, None


row_losses = define(
    "cross_entropy(Tensor logits, Tensor labels, SymInt ignore_index, float label_smoothing, float z_loss) "
    "-> (Tensor, Tensor)",
    _forward,
    _fake,
    _RowLosses,
)
_row_losses_grad = define(
    "cross_entropy_backward(Tensor upstream, Tensor logits, Tensor labels, Tensor statistics, SymInt ignore_index, "
    "float label_smoothing, float z_loss) -> Tensor",
    _backward,
    _backward_fake,
)
