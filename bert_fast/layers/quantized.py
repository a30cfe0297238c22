"""A layer in int8, for inference on CPU: its products of bytes, and one pass over memory between each two of them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bert_fast import backend, derived, notices
from bert_fast.config import check_quantization
from bert_fast.layers.prepared import PlainLayer
from bert_fast.ops.library import autocast_dtype
from bert_fast.ops.quantized import (
    attention_dtype,
    byte_add_layer_norm,
    byte_gelu,
    byte_rows,
    from_bytes,
    int8_reasons,
)
from bert_fast.packing import Layout

_told: set[str] = set()


@dataclass(frozen=True)
class QuantizedLayer(PlainLayer):
    """Of products in int8, each a ``ByteLinear``."""

    def __call__(self, x: Tensor, layout: Layout, probabilities: None = None) -> Tensor:
        """``[T, H]`` -> ``[T, H]``, float32."""
        qkv, attended, up, down = self.products
        x = x.float().contiguous()
        y = self.attend(from_bytes(qkv(byte_rows(x)), attention_dtype()), layout)
        x, codes = byte_add_layer_norm(attended(byte_rows(y)), x, *_norm(self.norms[0]), quantize=True)
        inner = byte_gelu(up(codes), self.approximate)
        return byte_add_layer_norm(down(inner), x, *_norm(self.norms[1]), quantize=False)[0]


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight.float(), norm.bias.float(), norm.eps


def quantized(layout: Layout, quantization: str, device: torch.device, training: bool) -> Layout:
    """``layout`` of an encoder that is to run in int8, where that can be now; else as it is.

    Warns once a reason, but not in training mode.

    Raises:
        ValueError: another quantization.
    """
    check_quantization(quantization)
    reasons = quantization_reasons(device)
    if not reasons:
        return replace(layout, quantization=quantization)
    if not training:
        tell(f"quantization='int8' is left aside: {'; '.join(reasons)}")
    return layout


def tell(message: str) -> None:
    """Warn, but only once in this process, and not a compiler."""
    if not torch.compiler.is_compiling() and message not in _told:
        _told.add(message)
        notices.warn(message)


def quantization_reasons(device: torch.device) -> list[str]:
    """Why an encoder on ``device`` cannot run in int8 now; empty if it can."""
    if device.type != "cpu":
        return [f"the model is on {device.type}"]
    reasons = []
    if torch.is_grad_enabled():
        reasons.append("gradients are enabled: call it under torch.no_grad()")
    elif not derived.allowed():
        reasons.append("it is compiled, traced, exported or transformed, or there are hooks on all modules")
    if autocast_dtype(device) is not None:
        reasons.append("autocast is on")
    if backend.has_kernels(device):
        reasons.append("Triton's interpreter runs")
    return reasons or int8_reasons()
