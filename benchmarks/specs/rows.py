"""Row-wise ops: LayerNorm and what is fused around it, GELU, softmax. All are bound by memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.specs import peers
from benchmarks.specs.spec import Cost, Provider, Spec, Tensors, missing
from bert_fast import ops, reference

EPS = 1e-12
SITE = 3
_BOTH = ("forward", "backward")


def _randn(context: Context, seed: int, **shapes: tuple[int, ...]) -> Tensors:
    """Normal numbers of the given shapes; names that end in "weight" lie about 1."""
    generator = context.generator(seed)
    found: Tensors = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator, device=context.device)
        found[name] = (x * 0.2 + 1 if name.endswith("weight") else x).to(context.dtype)
    found["seed"] = torch.tensor([seed + 12345], dtype=torch.int64, device=context.device)
    return found


def _size(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _with_compiled(context: Context, eager: Callable[[Tensors, float], Tensor]) -> tuple[Provider, Provider]:
    compiled = context.compiled(eager)
    return Provider("eager", eager), Provider("torch.compile", compiled)


def dropout_add_layer_norm(context: Context, p: float) -> Spec:
    def make(tokens: int, seed: int) -> Tensors:
        rows, vector = (tokens, context.sizes.hidden), (context.sizes.hidden,)
        return _randn(context, seed, x=rows, residual=rows, weight=vector, bias=vector, x_bias=vector)

    def arguments(t: Tensors) -> tuple:
        return t["x"], t["residual"], t["weight"], t["bias"], EPS

    def ours(t: Tensors, p: float) -> Tensor:
        with context.ours():
            dropout = {"p": p, "seed": t["seed"], "site": SITE}
            return ops.dropout_add_layer_norm(*arguments(t), x_bias=t["x_bias"], **dropout)

    def truth(t: Tensors, p: float) -> Tensor:
        dropout = {"p": p, "seed": t["seed"] if p > 0 else None, "site": SITE}
        return reference.dropout_add_layer_norm(*arguments(t), x_bias=t["x_bias"], **dropout)

    def eager(t: Tensors, p: float) -> Tensor:
        summed = t["residual"] + F.dropout(t["x"] + t["x_bias"], p)
        return F.layer_norm(summed, t["weight"].shape, t["weight"], t["bias"], EPS)

    def costs(t: Tensors) -> dict[str, Cost]:
        rows, statistics = _size(t["x"]), 8 * len(t["x"])
        if p == 0:
            return {"forward": Cost(3 * rows), "training": Cost(4 * rows + statistics), "backward": Cost(3 * rows)}
        return {"training": Cost(4 * rows + statistics), "backward": Cost(4 * rows + statistics)}

    def flash(t: Tensors, p: float) -> Tensor:
        return peers.flash_dropout_add_layer_norm(t, p, EPS)

    others = (*_with_compiled(context, eager), Provider("flash-attn", flash, missing=missing("flash_attn", context)))
    providers = (Provider("bert_fast", ours, masks=True), *others)
    leaves = ("x", "residual", "weight", "bias", "x_bias")
    directions = ("forward", "training", "backward") if p == 0 else ("training", "backward")
    return Spec("dropout_add_layer_norm", make, truth, providers, costs, directions, leaves, p)


def layer_norm(context: Context, p: float) -> Spec:
    def make(tokens: int, seed: int) -> Tensors:
        vector = (context.sizes.hidden,)
        return _randn(context, seed, x=(tokens, context.sizes.hidden), weight=vector, bias=vector)

    def ours(t: Tensors, p: float) -> Tensor:
        with context.ours():
            return ops.layer_norm(t["x"], t["weight"], t["bias"], EPS)

    def eager(t: Tensors, p: float) -> Tensor:
        return F.layer_norm(t["x"], t["weight"].shape, t["weight"], t["bias"], EPS)

    def liger(t: Tensors, p: float) -> Tensor:
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        return LigerLayerNormFunction.apply(t["x"], t["weight"], t["bias"], EPS)

    def costs(t: Tensors) -> dict[str, Cost]:
        rows = _size(t["x"])
        return {"forward": Cost(2 * rows), "backward": Cost(3 * rows + 8 * len(t["x"]))}

    def apex(t: Tensors, p: float) -> Tensor:
        return peers.apex_layer_norm(t["x"], t["weight"], t["bias"], EPS)

    def engine(t: Tensors, p: float) -> Tensor:
        return peers.transformer_engine_layer_norm(t, EPS)

    providers = (
        Provider("bert_fast", ours),
        *_with_compiled(context, eager),
        Provider("liger", liger, missing=missing("liger_kernel", context)),
        Provider("apex", apex, missing=missing("apex", context)),
        Provider("transformer-engine", engine, missing=missing("transformer_engine", context)),
    )
    return Spec("layer_norm", make, eager, providers, costs, _BOTH, ("x", "weight", "bias"))


def bias_gelu(context: Context, p: float) -> Spec:
    def make(tokens: int, seed: int) -> Tensors:
        width = context.sizes.intermediate
        return _randn(context, seed, x=(tokens, width), bias=(width,))

    def ours(t: Tensors, p: float) -> Tensor:
        with context.ours():
            return ops.bias_gelu(t["x"], t["bias"])

    def eager(t: Tensors, p: float) -> Tensor:
        return F.gelu(t["x"] + t["bias"])

    def costs(t: Tensors) -> dict[str, Cost]:
        return {"forward": Cost(2 * _size(t["x"])), "backward": Cost(3 * _size(t["x"]))}

    providers = (Provider("bert_fast", ours), *_with_compiled(context, eager))
    return Spec("bias_gelu", make, eager, providers, costs, _BOTH, ("x", "bias"))


def gelu_layer_norm(context: Context, p: float) -> Spec:
    def make(tokens: int, seed: int) -> Tensors:
        vector = (context.sizes.hidden,)
        return _randn(context, seed, x=(tokens, context.sizes.hidden), weight=vector, bias=vector)

    def ours(t: Tensors, p: float) -> Tensor:
        with context.ours():
            return ops.gelu_layer_norm(t["x"], t["weight"], t["bias"], EPS)

    def eager(t: Tensors, p: float) -> Tensor:
        return F.layer_norm(F.gelu(t["x"]), t["weight"].shape, t["weight"], t["bias"], EPS)

    def costs(t: Tensors) -> dict[str, Cost]:
        return {"forward": Cost(2 * _size(t["x"])), "backward": Cost(3 * _size(t["x"]) + 8 * len(t["x"]))}

    providers = (Provider("bert_fast", ours), *_with_compiled(context, eager))
    return Spec("gelu_layer_norm", make, eager, providers, costs, _BOTH, ("x", "weight", "bias"))


def scaled_masked_softmax(context: Context, p: float) -> Spec:
    keys = 16 if context.small else 128
    scale = 1 / math.sqrt(context.sizes.head_dim)

    def make(tokens: int, seed: int) -> Tensors:
        batch = max(1, tokens // keys)
        found = _randn(context, seed, scores=(batch, context.sizes.heads, keys, keys))
        lengths = torch.randint(keys // 2, keys + 1, (batch,), generator=context.generator(seed), device=context.device)
        hidden = torch.arange(keys, device=context.device) >= lengths[:, None]
        mask = torch.zeros(hidden.shape, dtype=context.dtype, device=context.device)
        return found | {"mask": mask.masked_fill(hidden, -math.inf)[:, None, None]}

    def ours(t: Tensors, p: float) -> Tensor:
        with context.ours():
            return ops.scaled_masked_softmax(t["scores"], t["mask"], scale)

    def truth(t: Tensors, p: float) -> Tensor:
        return reference.scaled_masked_softmax(t["scores"], t["mask"], scale)

    def eager(t: Tensors, p: float) -> Tensor:
        return torch.softmax(scale * t["scores"] + t["mask"], -1)

    def costs(t: Tensors) -> dict[str, Cost]:
        return {"forward": Cost(2 * _size(t["scores"])), "backward": Cost(3 * _size(t["scores"]))}

    providers = (Provider("bert_fast", ours), *_with_compiled(context, eager))
    return Spec("scaled_masked_softmax", make, truth, providers, costs, _BOTH, ("scores",))


SPECS = {
    "dropout_add_layer_norm": dropout_add_layer_norm,
    "layer_norm": layer_norm,
    "bias_gelu": bias_gelu,
    "gelu_layer_norm": gelu_layer_norm,
    "scaled_masked_softmax": scaled_masked_softmax,
}
