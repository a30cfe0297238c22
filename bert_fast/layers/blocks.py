"""Half a layer as one node of autograd, while training on the kernels and where no module in it must be called."""

import math

import torch
from torch import Tensor, nn

from bert_fast import backend, derived
from bert_fast.layers.activations import GELU
from bert_fast.ops.attention import attention_plan, kernel_runs
from bert_fast.ops.blocks import Attending, Closing, attention_block, feed_forward_block
from bert_fast.ops.library import autocast_dtype, plain_tensors
from bert_fast.ops.rows import runs_on_rows
from bert_fast.packing import Layout


def attend(attention: nn.Module, output: nn.Module, x: Tensor, layout: Layout) -> Tensor | None:
    """``output(attention(x, layout), x, layout.seed)`` of plain modules; None where they have to be called."""
    layers = (attention.query, attention.key, attention.value, output.dense)
    weights = _weights(layers, output, x)
    if weights is None or len({layer.weight.shape for layer in layers[:3]}) > 1:
        return None
    p, closing = attention.dropout.p if attention.training else 0.0, _closing(output)
    if layout.seed is None and (p > 0 or closing.p > 0):
        return None
    if (
        layout.window is not None
        or layout.rotary is not None
        or (layout.bias is not None and layout.bias.requires_grad)
    ):
        return None
    by_head = x.detach().unflatten(-1, (attention.num_attention_heads, attention.attention_head_size))
    if not (kernel_runs(by_head, by_head, by_head, layout.bias) and _closes(output, x)):
        return None
    schedule = layout.plan if isinstance(layout.plan, Tensor) else attention_plan(layout.cu_seqlens)
    batch = (layout.cu_seqlens, schedule, layout.bias, layout.key_mask)
    scale = 1 / math.sqrt(attention.attention_head_size)
    attending = Attending(attention.num_attention_heads, layout.max_seqlen, scale, p, attention.dropout_site)
    return attention_block(x, weights, batch, layout.seed, attending, closing)


def feed_forward(intermediate: nn.Module, output: nn.Module, x: Tensor, seed: Tensor | None) -> Tensor | None:
    """``output(intermediate(x), x, seed)`` of plain modules; None where they have to be called."""
    weights = _weights((intermediate.dense, output.dense), output, x)
    if weights is None or intermediate.hidden_act not in GELU:
        return None
    closing = _closing(output)
    if seed is None and closing.p > 0:
        return None
    if not (runs_on_rows("bias_gelu", limit=None, x=x) and _closes(output, x)):
        return None
    return feed_forward_block(x, weights, seed, GELU[intermediate.hidden_act], closing)


def wanted(x: Tensor) -> bool:
    """Whether blocks may run on rows like ``x`` now: with gradients, on the kernels, and not being compiled."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and backend.has_kernels(x.device)
        and autocast_dtype(x.device) is None
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _closing(output: nn.Module) -> Closing:
    dropout = output.dropout
    return Closing(output.LayerNorm.eps, dropout.p if dropout.training else 0.0, output.dropout_site)


def _closes(output: nn.Module, x: Tensor) -> bool:
    vectors = {"weight": output.LayerNorm.weight, "bias": output.LayerNorm.bias, "x_bias": output.dense.bias}
    return runs_on_rows("dropout_add_layer_norm", x=x, **vectors)


def _weights(layers: tuple[nn.Module, ...], output: nn.Module, x: Tensor) -> tuple[Tensor, ...] | None:
    """Each layer's weight and bias, then LayerNorm's; None where a module must be called or nothing is trained."""
    norm = output.LayerNorm
    if not (derived.plain_norm(norm) and derived.plain(output.dropout, nn.Dropout)):
        return None
    if not all(derived.plain_linear(layer) and layer.bias is not None for layer in layers):
        return None
    weights = tuple(p for module in (*layers, norm) for p in (module.weight, module.bias))
    alike = all(w.dtype == x.dtype and w.device == x.device for w in weights)
    alike = alike and all(layer.bias.shape == layer.weight.shape[:1] and layer.bias.is_contiguous() for layer in layers)
    trained = x.requires_grad or any(w.requires_grad for w in weights)
    return weights if alike and trained and plain_tensors(x, norm.weight, norm.bias) else None
