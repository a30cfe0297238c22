"""The door to cross-entropy over rows of logits."""

import torch
from torch import Tensor

from bert_fast import reference
from bert_fast.ops import id_checks
from bert_fast.ops.cross_entropy import LossRule, fused_cross_entropy, kernel_runs, row_losses

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = -100,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy over rows; an ignored row counts for nothing, and without any other the mean is 0.

    Args:
        logits: ``[R, V]``, any floating dtype, any strides.
        labels: integers ``[R]``.
        ignore_index: the label of rows that do not count.
        label_smoothing: 0 to 1, the share of the target that is spread over all classes, as PyTorch's.
        z_loss: weight of the squared log-sum-exp that is added to each row's loss.
        reduction: "mean" over the rows that count, "sum", or "none".

    Returns:
        a scalar, or ``[R]`` for "none", in at least float32.

    Raises:
        TypeError: labels that are no integers: probabilities of the classes are not taken.
        ValueError: shapes that do not fit, a ``label_smoothing`` outside 0 to 1, an unknown ``reduction``.
        IndexError: a label that is no class, on CPU at once. On a GPU its row is ignored, a flag is set on the device,
            and the next call of :func:`bert_fast.ops.unpad`, where the host waits anyway, raises.
    """
    check_options(labels, logits, label_smoothing, reduction)
    labels = labels.long()
    rule = LossRule(ignore_index, label_smoothing, z_loss)
    on_kernel = logits.dim() == 2 and logits.shape[1] > 0 and kernel_runs(logits)
    id_checks.flag_is_made(logits.device)
    if on_kernel and torch.compiler.is_compiling():
        losses, _ = row_losses(logits, labels, ignore_index, label_smoothing, z_loss)
        if reduction == "none":
            return losses
        return losses.sum() / ((labels != ignore_index).sum().clamp(min=1) if reduction == "mean" else 1)
    if on_kernel:
        return fused_cross_entropy(logits, labels, rule, reduction, True)
    if not torch.compiler.is_compiling():
        labels = id_checks.checked_labels(labels, logits.shape[-1], ignore_index)
    return reference.cross_entropy(
        logits, labels, ignore_index, label_smoothing=label_smoothing, z_loss=z_loss, reduction=reduction
    )


def check_options(labels: Tensor, x: Tensor, label_smoothing: float, reduction: str) -> None:
    """Raise the TypeError and the ValueErrors of :func:`cross_entropy`."""
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be integers, one class per row, not {labels.dtype} (nor probabilities)")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, not {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be 0 to 1, not {label_smoothing}")
    if labels.device != x.device:  # a kernel would follow an address of the other's memory
        raise ValueError(f"labels are on {labels.device}, but the rows they belong to on {x.device}")
    if not torch.compiler.is_compiling() and tuple(labels.shape) != (x.shape[0],):
        raise ValueError(f"labels must have one entry per row, [{x.shape[0]}], not {list(labels.shape)}")
