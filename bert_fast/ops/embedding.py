"""embedding_layer_norm: gather word, position and type rows, add, normalise, drop.

The backward on a GPU takes what it sums from the tables again. There are two ways from there to the gradients of the
word and position tables (those of up to two types are summed on the way); with N = T * H and E = V * H elements:

- sorted: a token's gradient is written, [T, H], and its rows are summed by sorted ids. The same bits on every run.
- added: atomics add it to float32 tables, which for 16-bit ones lie beside them and are rounded at the end.

Counted, not measured, for 30,522 rows of 768 and one H200 (4.3 TB/s; atomics in its L2 cache at 2.6 TB/s): sorting
moves 6N + 2E bytes (float32: 12N + 4E), and its 26 small launches take some 80 us; adding moves 10E (4E), and 8N of
atomics. A million elements of N cost 1.4 us (2.8) sorted and 3.1 added, those of E 0.5 (0.9) and 2.3 (0.9), so float32
is always added, 16 bits up to some 20,000 tokens; torch.use_deterministic_algorithms has everything sorted.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast import backend, extension, reference
from bert_fast.ops import id_checks, library
from bert_fast.ops.library import below_autograd, define, dtype_reasons

_FEW_TYPES = 2  # kFewTypes of csrc/cuda/api.h
_MOST_ADDED = 40_000_000  # elements of 16 bits, of tokens' rows and of tables, that atomics are the faster way for


def embedding_layer_norm(
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    padding_idx: int | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """``dropout(LN(word[input_ids] + token_type[token_type_ids] + position[position_ids]))``.

    Args:
        input_ids, position_ids: int64 ``[T]``.
        token_type_ids: int64 ``[T]``; None stands for row 0, which still adds.
        word, position, token_type: the tables, ``[rows, H]``.
        weight, bias: LayerNorm's, ``[H]``.
        padding_idx: the word row that gets no gradient.
        p, seed, site: dropout, as in :func:`bert_fast.ops.dropout_add_layer_norm`; without ``seed`` PyTorch draws it.

    Returns:
        ``[T, H]`` in the tables' dtype.

    Raises:
        TypeError: ids that are neither int64 nor int32.
        ValueError: ids on another device than the tables, or of different lengths.
        IndexError: an id outside its table, on CPU at once. On a GPU the id is clamped, a flag is set on the device,
            and the next call of :func:`bert_fast.ops.unpad`, where the host waits anyway, raises.
    """
    ids = {1: (input_ids, word), 2: (position_ids, position), 3: (token_type_ids, token_type)}
    for code, (values, _) in ids.items():
        if values is not None and values.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{id_checks.TABLES[code]} must be int32 or int64, not {values.dtype}")
        # A kernel would read through a wrong device's pointer or past a shorter tensor, and take the process with it.
        if values is not None and values.device != word.device:
            raise ValueError(f"{id_checks.TABLES[code]} are on {values.device}, but the model is on {word.device}")
        if values is not None and not torch.compiler.is_compiling() and values.shape != input_ids.shape:
            name, shapes = id_checks.TABLES[code], (list(values.shape), list(input_ids.shape))
            raise ValueError(f"{name} must have the shape of input_ids: {shapes[0]} is not {shapes[1]}")
    tables = (word, position, token_type, weight, bias)
    id_checks.flag_is_made(word.device)
    if backend.runs("embedding_layer_norm", "cuda", word.device, _against(input_ids, *tables)):
        save = torch.is_grad_enabled() and any(t.requires_grad for t in tables)
        drawn = 0.0 if seed is None else p
        arguments = (input_ids, token_type_ids, position_ids, *tables, None if drawn == 0 else seed)
        y = _embedding(*arguments, eps, drawn, site, padding_idx, save)[0]
        return y if drawn == p else F.dropout(y, p)
    if not torch.compiler.is_compiling():
        if word.device.type == "cuda":
            input_ids, position_ids, token_type_ids = (
                id_checks.clamp_ids(code, values, table.shape[0]) for code, (values, table) in ids.items()
            )
        elif word.device.type == "cpu":
            for code, (values, table) in ids.items():
                if values is not None:
                    id_checks.check_ids(id_checks.TABLES[code], values, table.shape[0])
    return reference.embedding_layer_norm(
        input_ids,
        token_type_ids,
        position_ids,
        *tables,
        eps,
        padding_idx=padding_idx,
        p=p,
        seed=seed,
        site=site,
    )


def _against(input_ids: Tensor, *tensors: Tensor) -> tuple[str, ...]:
    reasons = dtype_reasons(**{"the word table": tensors[0]})
    if input_ids.dim() != 1:
        reasons.append(f"input_ids have {input_ids.dim()} dimensions, not 1")
    if any(t.dtype != tensors[0].dtype for t in tensors):
        reasons.append("the tables and the LayerNorm differ in dtype")
    if any(t.device != tensors[0].device for t in tensors):
        reasons.append("the tables and the LayerNorm lie on several devices")
    if any(not t.is_contiguous() for t in tensors):
        reasons.append("a table is not contiguous")
    if tensors[0].dtype != torch.float32 and torch.is_autocast_enabled("cuda"):
        reasons.append("autocast wants a float32 LayerNorm of 16-bit tables")
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensors[0]):
        reasons.append("the tables are inside torch.func")
    return tuple(reasons)


def _inputs(input_ids, token_type_ids, position_ids, word, position, token_type, weight, seed, p, site):
    """What the extension's functions begin with, and the tensors behind its pointers, which must outlive the call."""
    for name, values in (("token_type_ids", token_type_ids), ("position_ids", position_ids)):
        if values is not None and values.shape != input_ids.shape:
            shapes = f"{list(values.shape)} is not {list(input_ids.shape)}"
            raise ValueError(f"{name} must have the shape of input_ids: {shapes}")
    if p > 0 and (seed is None or seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != word.device):
        given = "None" if seed is None else f"{seed.dtype} of {seed.numel()} elements on {seed.device}"
        raise ValueError(f"seed must be an int64 tensor of one element on {word.device} where p > 0, not {given}")
    ids = [None if x is None else x.long().contiguous() for x in (input_ids, token_type_ids, position_ids)]
    tensors = [*ids, word, position, token_type, weight]
    sizes = (input_ids.shape[0], word.shape[1], word.shape[0], position.shape[0], token_type.shape[0])
    dtype = str(word.dtype).removeprefix("torch.")
    pointers = [0 if x is None else x.data_ptr() for x in tensors]
    return (*pointers, *sizes, dtype, seed.data_ptr() if p > 0 else 0, p, site), tensors


def _forward(
    input_ids, token_type_ids, position_ids, word, position, token_type, weight, bias, seed, eps, p, site, _, save
):
    inputs, held = _inputs(
        input_ids, token_type_ids, position_ids, word, position, token_type, weight, seed, p, site
    )
    y, mean, rstd = _forward_fake(
        input_ids, token_type_ids, position_ids, word, position, token_type, weight, bias, seed, eps, p, site, _, save
    )
    statistics = (mean.data_ptr(), rstd.data_ptr()) if save else (0, 0)
    flag = id_checks.bad_id_flag(word.device).data_ptr()
    extension.required().embedding_layer_norm_cuda(
        inputs, bias.data_ptr(), eps, y.data_ptr(), *statistics, flag, *library.launch_on(word)
    )
    return y, mean, rstd


def _forward_fake(
    input_ids, token_type_ids, position_ids, word, position, token_type, weight, bias, seed, eps, p, site, _, save
):
    tokens = input_ids.shape[0]
    # An op's results are tensors; nothing saved is two empty ones.
    statistics = (word.new_empty(tokens if save else 0, dtype=torch.float32) for _ in range(2))
    return word.new_empty(tokens, word.shape[1]), *statistics


def _backward(
    dy, input_ids, token_type_ids, position_ids, word, position, token_type, weight, mean, rstd, seed, p, site,
    padding_idx, wanted,
):  # fmt: skip
    module, on = extension.required(), library.launch_on(word)
    dy = dy.contiguous()
    inputs, held = _inputs(input_ids, token_type_ids, position_ids, word, position, token_type, weight, seed, p, site)
    tables = (word, position, token_type)
    few = token_type.shape[0] <= _FEW_TYPES and wanted[2]
    by_row = (wanted[0], wanted[1], wanted[2] and not few)
    adds = _adds(word.dtype, dy.numel() + sum(t.numel() for t, here in zip(tables, by_row, strict=True) if here))
    added = [
        torch.zeros(t.shape, dtype=torch.float32, device=t.device) if adds and here else None
        for t, here in zip(tables, by_row, strict=True)
    ]
    *grads, d_weight, d_bias = _backward_fake(
        dy, input_ids, token_type_ids, position_ids, word, position, token_type, weight, mean, rstd, seed, p, site,
        padding_idx, [want and sums is None for want, sums in zip(wanted, added, strict=True)],
    )  # fmt: skip
    d_sum = None if adds else torch.empty_like(dy)
    size = module.embedding_layer_norm_backward_cuda_workspace(*dy.shape)
    workspace = torch.empty(size, dtype=torch.uint8, device=dy.device)
    skip = -1 if padding_idx is None else padding_idx
    outputs = [0 if x is None else x.data_ptr() for x in (d_sum, d_weight, d_bias, grads[2] if few else None)]
    sums_of_rows = [0 if x is None else x.data_ptr() for x in added]
    module.embedding_layer_norm_backward_cuda(
        inputs, dy.data_ptr(), mean.data_ptr(), rstd.data_ptr(), *outputs, sums_of_rows, skip, workspace.data_ptr(),
        size, *on,
    )  # fmt: skip
    if d_sum is None:
        grads = [grad if sums is None else sums.to(grad.dtype) for grad, sums in zip(grads, added, strict=True)]
        return *grads, d_weight, d_bias
    ids, type_ids, places = held[:3]
    if type_ids is None:
        type_ids = torch.zeros_like(ids) if by_row[2] else ids
    rows_of = ((ids, skip), (places, -1), (type_ids, -1))
    for grad, (rows, skipped), here in zip(grads, rows_of, by_row, strict=True):
        if here:
            _sum_by_id(d_sum, rows, grad, skipped)
    return *grads, d_weight, d_bias


def _adds(dtype: torch.dtype, elements: int) -> bool:
    """Whether atomics sum the gradients of the tables; how it was counted stands above."""
    if torch.are_deterministic_algorithms_enabled():
        return False
    return dtype == torch.float32 or elements <= _MOST_ADDED


def _backward_fake(
    dy, input_ids, token_type_ids, position_ids, word, position, token_type, weight, mean, rstd, seed, p, site,
    padding_idx, wanted,
):  # fmt: skip
    tables = (t.new_empty(t.shape if want else 0) for t, want in zip((word, position, token_type), wanted, strict=True))
    return *tables, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _sum_by_id(x: Tensor, ids: Tensor, out: Tensor, skip: int) -> None:
    """``out[r]`` = the sum of the rows of ``x [T, H]`` whose id is r, in their order; 0 in row ``skip``."""
    module, rows = extension.required(), out.shape[0]
    ids = ids.clamp(0, rows - 1)
    # A radix sort takes a pass for every byte of its keys.
    narrow = torch.int16 if rows <= 2**15 else torch.int32 if rows <= 2**31 else torch.int64
    order = ids.to(narrow).sort(stable=True).indices
    size = module.sum_rows_by_id_cuda_workspace(*x.shape)
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    pointers = (x.data_ptr(), ids.data_ptr(), order.data_ptr())
    dtype = str(x.dtype).removeprefix("torch.")
    module.sum_rows_by_id_cuda(
        *pointers, *x.shape, rows, skip, dtype, out.data_ptr(), workspace.data_ptr(), size, *library.launch_on(x)
    )


class _EmbeddingLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple:
        *tensors, _, seed, _, p, site, padding_idx, _ = arguments  # all tensors but the bias, which has no part in it
        y, mean, rstd = below_autograd(_embedding, *arguments)
        ctx.save_for_backward(*tensors, mean, rstd, seed)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.options = (p, site, padding_idx)
        return y, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple:
        wanted = list(ctx.needs_input_grad[3:6])
        gradients = _embedding_grad(dy, *ctx.saved_tensors, *ctx.options, wanted)
        tables = (g if want else None for g, want in zip(gradients[:3], wanted, strict=True))
        return None, None, None, *tables, *gradients[3:], *[None] * 6


_IDS = "Tensor input_ids, Tensor? token_type_ids, Tensor position_ids"
_TABLES = "Tensor word, Tensor position, Tensor token_type, Tensor weight"
_embedding = define(
    f"embedding_layer_norm({_IDS}, {_TABLES}, Tensor bias, Tensor? seed, float eps, float p, int site, "
    "int? padding_idx, bool save) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    _EmbeddingLayerNorm,
)
_embedding_grad = define(
    f"embedding_layer_norm_backward(Tensor dy, {_IDS}, {_TABLES}, Tensor mean, Tensor rstd, Tensor? seed, float p, "
    "int site, int? padding_idx, bool[3] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
