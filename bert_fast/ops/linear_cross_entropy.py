"""linear_cross_entropy: the loss of a large vocabulary without its logits, which exist a chunk of rows at a time.

The gradients are products with a chunk's logits, so they are made while it exists, in the forward pass, for a sum over
rows; the backward pass scales them (Hsu et al., 2024, and Wijmans et al., 2024, describe it).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast.ops import id_checks
from bert_fast.ops.cross_entropy import LossRule, kernel_runs, write_rows
from bert_fast.ops.library import autocast_dtype, below_autograd, capturing, define
from bert_fast.ops.loss import check_options, cross_entropy

# Bytes of logits that exist at once. 16 MiB in caches are slower on CPU than 64: each chunk passes over the weight's
# gradient once. On a GPU the products are to be large.
_CPU_CHUNK, _GPU_CHUNK = 2**26, 2**28
# Rows of logits start at multiples of 16 bytes, which products with them need to run at full speed: where V does not
# bring that about, at multiples of this many elements.
_ROW_ALIGNMENT = 64
# float16 would lose a probability below 6e-8. The largest sum over a row, 2 * this * |weight|, stays far from its end.
_FLOAT16_FACTOR = 256.0
_DEVICES = ("cpu", "cuda", "meta")  # for which the op is registered


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int = -100,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    drop_ignored: bool = True,
    chunk_bytes: int | None = None,
) -> Tensor:
    """``cross_entropy(hidden @ weight.T + bias, labels)``, holding ``chunk_bytes`` of logits at most (or one row).

    Args:
        hidden: ``[R, H]``.
        weight, bias: of the layer that makes logits of it, ``[V, H]`` and ``[V]``, in hidden's dtype; under autocast
            all three are brought to autocast's.
        labels, ignore_index, label_smoothing, z_loss, reduction: as for :func:`bert_fast.ops.cross_entropy`.
        drop_ignored: take ignored rows out first, for which a GPU's host waits once (in a CUDA graph they stay in);
            False where the caller has.
        chunk_bytes: 64 MiB on CPU and 256 MiB elsewhere by default.

    Returns:
        a scalar, or ``[R]`` for "none", in at least float32. Products run in the dtype of the inputs. The gradient of
        the weight is summed over chunks in at least float32 and rounded once.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit, and what :func:`bert_fast.ops.cross_entropy` raises.
        IndexError: a label that is no class; on a GPU later, as there.
    """
    check_options(labels, hidden, label_smoothing, reduction)
    given = [hidden, weight] if bias is None else [hidden, weight, bias]
    lower = autocast_dtype(hidden.device)
    if lower is not None and hidden.dtype != torch.float64:
        given = [x.to(lower) for x in given]
    _check_operands(given)
    labels = labels.long()
    if not torch.compiler.is_compiling() and labels.device.type == "cpu":
        labels = id_checks.checked_labels(labels, weight.shape[0], ignore_index)
    if torch._C._functorch.peek_interpreter_stack() is not None or hidden.device.type not in _DEVICES:
        # torch.func differentiates PyTorch's ops; what this op writes into memory it cannot see.
        logits = torch.nn.functional.linear(*given)
        return cross_entropy(
            logits, labels, ignore_index, label_smoothing=label_smoothing, z_loss=z_loss, reduction=reduction
        )
    if chunk_bytes is None:
        chunk_bytes = _CPU_CHUNK if hidden.device.type == "cpu" else _GPU_CHUNK
    needs = [torch.is_grad_enabled() and x.requires_grad for x in given]
    operands = (*given, *[None] * (3 - len(given)))
    # Chosen here, for the backward pass too, which runs in another thread.
    on_kernel = kernel_runs(given[0])
    options = (ignore_index, label_smoothing, z_loss, reduction, drop_ignored, chunk_bytes, on_kernel)
    needed = (*needs, *[False] * (3 - len(needs)))
    return _linear_cross_entropy(*operands, labels, *options, *needed)[0]


def labelled_rows(hidden: Tensor, labels: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor, Tensor | None]:
    """The rows of ``hidden [R, H]`` and ``labels [R]`` that are not ignored, and which they are; None means all."""
    rows = (labels != ignore_index).nonzero().squeeze(1)
    if rows.shape[0] == labels.shape[0]:
        return hidden, labels, None
    return hidden.index_select(0, rows), labels.index_select(0, rows), rows


def _check_operands(given: list[Tensor]) -> None:
    names = dict(zip(("hidden", "weight", "bias"), given, strict=False))
    hidden, weight = given[:2]
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be [R, H] and weight [V, H], not {list(hidden.shape)} and {list(weight.shape)}"
        )
    if len(given) == 3 and tuple(given[2].shape) != (weight.shape[0],):
        raise ValueError(f"bias must be [V] = [{weight.shape[0]}], not {list(given[2].shape)}")
    for kind in ("dtype", "device"):
        found = {name: getattr(x, kind) for name, x in names.items()}
        if len(set(found.values())) > 1:
            raise ValueError(f"hidden, weight and bias must have one {kind}: {found}")


class _Gradients(NamedTuple):
    """What is written while a chunk of logits exists; None where nobody wants it. For a loss times ``factor``."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _factor(hidden: Tensor) -> float:
    return _FLOAT16_FACTOR if hidden.dtype == torch.float16 else 1.0


def _new_gradients(hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, bool, bool]) -> _Gradients:
    return _Gradients(
        torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if needs[0] else None,
        torch.zeros(weight.shape, dtype=_wide(weight), device=weight.device) if needs[1] else None,
        torch.zeros(bias.shape, dtype=_wide(bias), device=bias.device) if bias is not None and needs[2] else None,
    )


def _run_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    rule: LossRule,
    chunk_bytes: int,
    on_kernel: bool,
    losses: Tensor | None,
    gradients: _Gradients,
    upstream: Tensor | None = None,
) -> None:
    """Fill ``losses [R]`` and ``gradients``; the one place where logits exist."""
    rows, classes = hidden.shape[0], weight.shape[0]
    if rows == 0:
        return
    aligned = classes * hidden.element_size() % 16 == 0
    width = classes if aligned else -(-classes // _ROW_ALIGNMENT) * _ROW_ALIGNMENT
    chunks = -(-rows // max(1, chunk_bytes // (width * hidden.element_size())))
    size = -(-rows // chunks)
    buffer = torch.empty(size, width, dtype=hidden.dtype, device=hidden.device)[:, :classes]
    any_gradient = any(x is not None for x in gradients)
    for start in range(0, rows, size):
        here = slice(start, min(start + size, rows))
        x, logits = hidden[here], buffer[: min(size, rows - start)]
        if bias is None:
            torch.mm(x, weight.t(), out=logits)
        else:
            torch.addmm(bias, x, weight.t(), out=logits)
        write_rows(
            logits,
            labels[here],
            rule,
            on_kernel=on_kernel,
            losses=None if losses is None else losses[here],
            grad=logits if any_gradient or not on_kernel else None,  # PyTorch's ops work in its place
            upstream=None if upstream is None else upstream[here],
            factor=_factor(hidden),
        )
        if gradients.hidden is not None:
            torch.mm(logits, weight, out=gradients.hidden[here])
        if gradients.weight is not None:
            _add_product(gradients.weight, logits, x)
        if gradients.bias is not None:
            gradients.bias.add_(logits.sum(0, dtype=gradients.bias.dtype))


def _add_product(total: Tensor, grads: Tensor, x: Tensor) -> None:
    """``total [V, H] += grads [r, V].T @ x [r, H]``, with a 16-bit product's sums kept in float32."""
    if total.dtype == x.dtype:
        total.addmm_(grads.t(), x)
    elif x.device.type == "cuda" and torch.version.hip is None:
        total.add_(torch.mm(grads.t(), x, out_dtype=torch.float32))
    elif x.dtype == torch.float16:
        total.addmm_(grads.t().to(total.dtype), x.to(total.dtype))  # the product's sums may be beyond float16
    else:
        total.add_(grads.t() @ x)


def _forward(
    hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, reduction, drop_ignored, chunk_bytes,
    on_kernel, *needs,
):  # fmt: skip
    rule = LossRule(ignore_index, label_smoothing, z_loss)
    kept, kept_labels, rows = hidden, labels, None
    if drop_ignored and not capturing(hidden.device):
        kept, kept_labels, rows = labelled_rows(hidden, labels, ignore_index)
    losses = torch.empty(kept.shape[0], dtype=_wide(hidden), device=hidden.device)
    later = reduction == "none"  # the gradients need an upstream of every row: the backward pass makes them
    gradients = _new_gradients(kept, weight, bias, (False,) * 3 if later else needs)
    with torch.autocast(hidden.device.type, enabled=False):
        _run_chunks(kept, weight, bias, kept_labels, rule, chunk_bytes, on_kernel, losses, gradients)
    inverse = torch.full((1,), 1 / _factor(hidden), dtype=losses.dtype, device=hidden.device)
    loss = losses
    if later and rows is not None:
        loss = losses.new_zeros(hidden.shape[0]).index_copy_(0, rows, losses)
    elif not later:
        loss = losses.sum()
        if reduction == "mean":
            count = (labels != ignore_index).sum().clamp(min=1)
            loss, inverse = loss / count, inverse / count
    gradients = gradients._replace(hidden=_spread(gradients.hidden, rows, hidden.shape))
    return loss, inverse, *(hidden.new_empty(0) if g is None else g for g in gradients)


def _spread(grad: Tensor | None, rows: Tensor | None, shape: torch.Size) -> Tensor | None:
    """The gradient of all rows from that of those that were kept."""
    return grad if grad is None or rows is None else grad.new_zeros(shape).index_copy_(0, rows, grad)


def _fake(
    hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, reduction, drop_ignored, chunk_bytes,
    on_kernel, *needs,
):  # fmt: skip
    none = reduction == "none"
    loss = hidden.new_empty(hidden.shape[:1] if none else (), dtype=_wide(hidden))
    empty = [hidden.new_empty(0) for _ in range(3)]
    made = [hidden.new_empty(hidden.shape), weight.new_empty(weight.shape, dtype=_wide(weight))]
    made.append(empty[2] if bias is None else bias.new_empty(bias.shape, dtype=_wide(bias)))
    grads = [m if need and not none else e for m, e, need in zip(made, empty, needs, strict=True)]
    return loss, hidden.new_empty(1, dtype=_wide(hidden)), *grads


def _backward(
    upstream, hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, drop_ignored, chunk_bytes,
    on_kernel, *needs,
):  # fmt: skip
    rule = LossRule(ignore_index, label_smoothing, z_loss)
    kept, rows = hidden, None
    if drop_ignored and not capturing(hidden.device):
        kept, labels, rows = labelled_rows(hidden, labels, ignore_index)
        upstream = upstream if rows is None else upstream.index_select(0, rows)
    gradients = _new_gradients(kept, weight, bias, needs)
    _run_chunks(kept, weight, bias, labels, rule, chunk_bytes, on_kernel, None, gradients, upstream)
    gradients = gradients._replace(hidden=_spread(gradients.hidden, rows, hidden.shape))
    scale = 1 / _factor(hidden)
    inputs = (hidden, weight, bias)
    return [(g * scale).to(x.dtype) for g, x in zip(gradients, inputs, strict=True) if g is not None]


def _backward_fake(
    upstream, hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, drop_ignored, chunk_bytes,
    on_kernel, *needs,
):  # fmt: skip
    wanted = zip((hidden, weight, bias), needs, strict=True)
    return [x.new_empty(x.shape) for x, need in wanted if x is not None and need]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, labels, *options) -> tuple[Tensor, ...]:
        loss, inverse, *gradients = below_autograd(_linear_cross_entropy, hidden, weight, bias, labels, *options)
        *rule, reduction, drop_ignored, chunk_bytes, on_kernel = options[:-3]
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.needs = options[-3:]
        ctx.recompute = (*rule, drop_ignored, chunk_bytes, on_kernel) if reduction == "none" else None
        ctx.save_for_backward(*((hidden, weight, bias, labels) if ctx.recompute else (inverse, *gradients)))
        ctx.mark_non_differentiable(inverse, *gradients)
        return loss, inverse, *gradients

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple:
        if ctx.recompute:
            made = iter(_linear_cross_entropy_grad(upstream, *ctx.saved_tensors, *ctx.recompute, *ctx.needs))
            grads = [next(made) if need else None for need in ctx.needs]
        else:
            inverse, *held = ctx.saved_tensors
            scale = upstream * inverse
            grads = [
                (g * scale).to(dtype) if need else None
                for g, dtype, need in zip(held, ctx.dtypes, ctx.needs, strict=True)
            ]
        return *grads, *[None] * 11


_linear_cross_entropy = define(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, SymInt ignore_index, "
    "float label_smoothing, float z_loss, str reduction, bool drop_ignored, int chunk_bytes, bool on_kernel, "
    "bool need_hidden, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    _LinearCrossEntropy,
)
_linear_cross_entropy_grad = define(
    "linear_cross_entropy_backward(Tensor upstream, Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, "
    "SymInt ignore_index, float label_smoothing, float z_loss, bool drop_ignored, int chunk_bytes, bool on_kernel, "
    "bool need_hidden, bool need_weight, bool need_bias) -> Tensor[]",
    _backward,
    _backward_fake,
)
