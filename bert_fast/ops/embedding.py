"""embedding_layer_norm: gather word, position and type rows, add, normalise."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast import backend, extension, reference
from bert_fast.ops import id_checks

_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


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
) -> Tensor:
    """``LN(word[input_ids] + token_type[token_type_ids] + position[position_ids])``.

    Args:
        input_ids, position_ids: int64 ``[T]``.
        token_type_ids: int64 ``[T]``; None stands for row 0, which still adds.
        word, position, token_type: the tables, ``[rows, H]``.
        weight, bias: LayerNorm's, ``[H]``.
        padding_idx: the word row that gets no gradient.

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
    if not torch.compiler.is_compiling():
        tables = (word, position, token_type, weight, bias)
        if backend.runs("embedding_layer_norm", "cuda", word.device, _against(*tables)):
            return _CudaEmbedding.apply(input_ids, token_type_ids, position_ids, *tables, eps, padding_idx)
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
        word,
        position,
        token_type,
        weight,
        bias,
        eps,
        padding_idx=padding_idx,
    )


def _against(*tensors: Tensor) -> tuple[str, ...]:
    reasons = []
    if tensors[0].dtype not in _DTYPES:
        reasons.append(f"dtype {tensors[0].dtype} is not one of float32, float16, bfloat16")
    if any(t.dtype != tensors[0].dtype for t in tensors):
        reasons.append("the tables and the LayerNorm differ in dtype")
    if any(not t.is_contiguous() for t in tensors):
        reasons.append("a table is not contiguous")
    return tuple(reasons)


class _CudaEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        position_ids: Tensor,
        word: Tensor,
        position: Tensor,
        token_type: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        padding_idx: int | None,
    ) -> Tensor:
        tokens, hidden = input_ids.numel(), word.shape[1]
        input_ids, position_ids = input_ids.long().contiguous(), position_ids.long().contiguous()
        token_type_ids = None if token_type_ids is None else token_type_ids.long().contiguous()
        out = torch.empty(tokens, hidden, dtype=word.dtype, device=word.device)
        mean, rstd = torch.empty(2, tokens, dtype=torch.float32, device=word.device)
        extension.module().embedding_layer_norm_cuda(
            input_ids.data_ptr(),
            0 if token_type_ids is None else token_type_ids.data_ptr(),
            position_ids.data_ptr(),
            *(t.data_ptr() for t in (word, position, token_type, weight, bias, out, mean, rstd)),
            tokens,
            hidden,
            word.shape[0],
            position.shape[0],
            token_type.shape[0],
            eps,
            _DTYPES[word.dtype],
            id_checks.bad_id_flag(word.device).data_ptr(),
            word.device.index,
            torch.cuda.current_stream(word.device).cuda_stream,
        )
        ctx.save_for_backward(
            input_ids, token_type_ids, position_ids, word, position, token_type, weight, bias, mean, rstd
        )
        ctx.padding_idx = padding_idx
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        input_ids, type_ids, position_ids, word, position, token_type, weight, bias, mean, rstd = ctx.saved_tensors
        input_ids = input_ids.clamp(0, word.shape[0] - 1)
        position_ids = position_ids.clamp(0, position.shape[0] - 1)
        type_ids = torch.zeros_like(input_ids) if type_ids is None else type_ids.clamp(0, token_type.shape[0] - 1)
        summed = F.embedding(input_ids, word) + F.embedding(type_ids, token_type) + F.embedding(position_ids, position)
        statistics = (mean[:, None], rstd[:, None])
        needed = [any(ctx.needs_input_grad[3:6]), ctx.needs_input_grad[6], ctx.needs_input_grad[7]]
        d_sum, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(), summed, list(weight.shape), *statistics, weight, bias, needed
        )
        padding = -1 if ctx.padding_idx is None else ctx.padding_idx
        tables = ((input_ids, word, padding), (position_ids, position, -1), (type_ids, token_type, -1))
        d_tables = [
            torch.ops.aten.embedding_dense_backward(d_sum, ids, table.shape[0], skip, False) if needs else None
            for (ids, table, skip), needs in zip(tables, ctx.needs_input_grad[3:6], strict=True)
        ]
        return None, None, None, *d_tables, d_weight, d_bias, None, None
