"""int8 on CPU: oneDNN's products of rows quantised one by one, and the passes between them by the C++ extension.

A row ``v`` is held as bytes ``q`` with ``v = scale * q + least``, its least and its largest value at 0 and 255; a
weight as signed bytes with one scale for each output. Then ``v @ w = scale * (q @ w) + least * sum(w)``: nothing is
rounded but the values themselves, and no zero point has to be a byte. (A scale for each token and each channel: as in
ZeroQuant, Yao et al. 2022.)
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bert_fast import backend, extension
from bert_fast.ops.attention_host import HOST_DTYPES, host_attention_instructions
from bert_fast.ops.host_threads import host_threads, host_threads_reason

_ACTIVATIONS = {"none": "gelu", "tanh": "gelu_tanh"}
# Products of so many terms, each up to 255 * 127, are still below 2^31.
MAX_WIDTH = (2**31 - 1) // (255 * 127)


class ByteRows(NamedTuple):
    """Rows ``scale[t] * codes[t] + least[t]``: uint8 ``[T, K]``, and float32 ``[2, T]``, scales and least values."""

    codes: Tensor
    lines: Tensor

    @property
    def scale(self) -> Tensor:
        """float32 ``[T]``."""
        return self.lines[0]

    @property
    def least(self) -> Tensor:
        """float32 ``[T]``."""
        return self.lines[1]

    def addresses(self) -> tuple[int, int]:
        """Where scale and least begin."""
        start = self.lines.data_ptr()
        return start, start + self.lines.stride(0) * 4


_NOTHING, _NO_ROWS = torch.empty(0), ByteRows(torch.empty(0, dtype=torch.uint8), torch.empty(2, 0))


@dataclass(frozen=True)
class ByteLinear:
    """A linear layer for :class:`ByteRows`: see :func:`byte_linear`.

    Attributes:
        weight: int8 ``[out, in]`` in oneDNN's own layout.
        scales: float32 ``[out]``, what a weight's unit is worth.
        zeros: int64 ``[out]``, all 0.
        column_sums: float32 ``[out]``, the sum of an output's weights.
        bias: float32 ``[out]``.
    """

    weight: Tensor
    scales: Tensor
    zeros: Tensor
    column_sums: Tensor
    bias: Tensor

    def addresses(self) -> tuple[int, int]:
        """Where column_sums and bias begin."""
        return self.column_sums.data_ptr(), self.bias.data_ptr()

    def __call__(self, x: ByteRows) -> "Product":
        y = torch.ops.onednn.qlinear_pointwise(
            x.codes, 1.0, 0, self.weight, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return Product(y, x, self)


class Product(NamedTuple):
    """What a ByteLinear made of rows, float32 ``[T, out]``, before their scales and its bias."""

    values: Tensor
    rows: ByteRows
    linear: ByteLinear


def int8_reasons() -> list[str]:
    """Why int8 products cannot run in this process; empty if they can."""
    if backend.requested() == "reference":
        return ["PyTorch's ops were asked for"]
    compiled = extension.module()
    if compiled is None:
        return [f"it needs the C++ extension: {extension.unavailable_reason()}"]
    reasons = [compiled.quantized_rows_reason(), host_threads_reason()]
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        reasons.append("this build of PyTorch has no oneDNN")
    return [reason for reason in reasons if reason]


def byte_linear(weight: Tensor, bias: Tensor | None) -> ByteLinear:
    """Quantise ``weight [out, in]``, each output's row with its own scale, largest value at 127.

    Raises:
        ValueError: ``in`` is above ``MAX_WIDTH``.
    """
    if weight.shape[1] > MAX_WIDTH:
        raise ValueError(f"weight must have at most {MAX_WIDTH} inputs for sums of 32 bits, not {weight.shape[1]}")
    weight, tiny = weight.detach().float(), torch.finfo(torch.float32).tiny
    scales = weight.abs().amax(1) / 127
    scales = torch.where(scales < tiny, 0, scales)  # subnormal: a row of zeros
    rounded = (weight / scales.clamp_min(tiny)[:, None]).round().to(torch.int8)
    sums = rounded.sum(1, dtype=torch.int64) * scales
    packed = torch.ops.onednn.qlinear_prepack(rounded, None)
    shift = torch.zeros_like(scales) if bias is None else bias.detach().float().contiguous()
    return ByteLinear(packed, scales, torch.zeros(len(scales), dtype=torch.int64), sums, shift)


def attention_dtype() -> torch.dtype:
    """What q, k and v are best written as: bfloat16, of 8 bits as they are, where attention multiplies pairs of it."""
    return torch.bfloat16 if host_attention_instructions() == "avx512bf16" else torch.float32


def byte_rows(x: Tensor) -> ByteRows:
    """``x [T, K]``, float32 or bfloat16, as bytes."""
    return _pass(x, quantize=True)[1]


def byte_gelu(y: Product, approximate: str) -> ByteRows:
    """``gelu(y)`` as bytes; ``approximate`` is "none" or "tanh".

    Raises:
        ValueError: it is neither.
    """
    if approximate not in _ACTIVATIONS:
        raise ValueError(f"approximate must be one of {tuple(_ACTIVATIONS)}, not {approximate!r}")
    return _pass(y, activation=_ACTIVATIONS[approximate], quantize=True)[1]


def from_bytes(y: Product, dtype: torch.dtype) -> Tensor:
    """``y`` in ``dtype``, float32 or bfloat16: ``[T, out]``."""
    return _pass(y, dtype=dtype)[0]


def byte_add_layer_norm(
    y: Product, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, quantize: bool
) -> tuple[Tensor, ByteRows]:
    """``LayerNorm(residual + y)`` for ``residual [T, out]``, all float32: as it is and, where asked for, as bytes.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    rows, width = y.values.shape
    residual = _fitting("residual", residual, (rows, width))
    norm = (_fitting("weight", weight, (width,)), _fitting("bias", bias, (width,)), eps)
    return _pass(y, residual=residual, norm=norm, dtype=torch.float32, quantize=quantize)


def _fitting(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``x`` as the extension reads it."""
    if x.shape != shape or x.dtype != torch.float32:
        raise ValueError(f"{name} must be float32 {list(shape)}, not {x.dtype} {list(x.shape)}")
    return x.contiguous()


def _pass(
    x: Tensor | Product,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    norm: tuple[Tensor, Tensor, float] | None = None,
    dtype: torch.dtype | None = None,
    quantize: bool = False,
) -> tuple[Tensor, ByteRows]:
    """One pass of csrc/host/quantized_rows.h; what was not asked for is empty."""
    product = x if isinstance(x, Product) else None
    values = (x.values if isinstance(x, Product) else x).contiguous()
    rows, width = values.shape
    out, held = _NOTHING, _NO_ROWS
    if dtype is not None:
        out = values.new_empty((rows, width), dtype=dtype)
    if quantize:
        codes = values.new_empty((rows, width), dtype=torch.uint8)
        held = ByteRows(codes, values.new_empty((2, rows), dtype=torch.float32))
    extension.required().quantized_rows(
        values.data_ptr(),
        _name(values.dtype),
        rows,
        width,
        (0, 0, 0, 0) if product is None else (*product.rows.addresses(), *product.linear.addresses()),
        0 if residual is None else residual.data_ptr(),
        activation,
        (0, 0, 0.0) if norm is None else (norm[0].data_ptr(), norm[1].data_ptr(), norm[2]),
        out.data_ptr(),
        _name(out.dtype),
        (held.codes.data_ptr(), *held.addresses()) if quantize else (0, 0, 0),
        *host_threads(),
    )
    return out, held


def _name(dtype: torch.dtype) -> str:
    return HOST_DTYPES.get(dtype, str(dtype))
