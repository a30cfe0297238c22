"""Gathers, scans and the loss: embeddings with LayerNorm, mask to indices, cross-entropy over a vocabulary."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.specs import peers
from benchmarks.specs.spec import Cost, Provider, Spec, Tensors, missing
from bert_fast import ops, reference
from bert_fast.ops.pooling import pool

EPS = 1e-12
_BOTH = ("forward", "backward")
_TABLES = ("word", "position", "token_type")


def embedding_layer_norm(context: Context, p: float) -> Spec:
    def make(tokens: int, seed: int) -> Tensors:
        sizes, generator = context.sizes, context.generator(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=context.device).to(context.dtype)

        def ids(rows: int) -> Tensor:
            return torch.randint(rows, (tokens,), generator=generator, device=context.device)

        return {
            "input_ids": ids(sizes.vocabulary), "token_type_ids": ids(2),
            "position_ids": torch.arange(tokens, device=context.device) % min(128, sizes.positions),
            "word": randn(sizes.vocabulary, sizes.hidden), "position": randn(sizes.positions, sizes.hidden),
            "token_type": randn(2, sizes.hidden), "weight": 1 + 0.2 * randn(sizes.hidden), "bias": randn(sizes.hidden),
            "seed": torch.tensor([seed + 12345], dtype=torch.int64, device=context.device),
        }  # fmt: skip

    def arguments(t: Tensors) -> tuple:
        ids = (t["input_ids"], t["token_type_ids"], t["position_ids"])
        return *ids, *(t[name] for name in _TABLES), t["weight"], t["bias"], EPS

    def ours(t: Tensors, p: float) -> Tensor:
        with context.ours():
            return ops.embedding_layer_norm(*arguments(t), p=p, seed=t["seed"], site=-1)

    def eager(t: Tensors, p: float) -> Tensor:
        summed = F.embedding(t["input_ids"], t["word"]) + F.embedding(t["token_type_ids"], t["token_type"])
        summed = summed + F.embedding(t["position_ids"], t["position"])
        return F.dropout(F.layer_norm(summed, t["weight"].shape, t["weight"], t["bias"], EPS), p)

    def costs(t: Tensors) -> dict[str, Cost]:
        rows = len(t["input_ids"]) * t["word"].shape[1] * t["word"].element_size()
        ids, statistics = 3 * 8 * len(t["input_ids"]), 8 * len(t["input_ids"])
        tables = sum(t[name].numel() * t[name].element_size() for name in _TABLES)
        # Forward: the words' rows and the result. Backward: the upstream gradient and the words' rows once, the tables'
        # gradients written once; what it writes in between is its own affair.
        found = {"training": Cost(2 * rows + ids + statistics), "backward": Cost(2 * rows + tables + ids + statistics)}
        return found if p > 0 else {"forward": Cost(2 * rows + ids), **found}

    compiled = context.compiled(eager)
    ours_first = Provider("bert_fast", ours, masks=True)
    providers = (ours_first, Provider("eager", eager), Provider("torch.compile", compiled))

    def truth(t: Tensors, p: float) -> Tensor:
        return reference.embedding_layer_norm(*arguments(t), p=p, seed=t["seed"], site=-1)

    directions = ("training", "backward") if p > 0 else ("forward", "training", "backward")
    leaves = (*_TABLES, "weight", "bias")
    return Spec("embedding_layer_norm", make, truth, providers, costs, directions, leaves, p)


def cross_entropy(context: Context, p: float) -> Spec:
    def make(tokens: int, seed: int) -> Tensors:
        sizes, generator = context.sizes, context.generator(seed)
        rows = sizes.loss_rows if tokens == sizes.tokens else min(512, sizes.loss_rows)
        logits = torch.randn(rows, sizes.vocabulary, generator=generator, device=context.device).to(context.dtype)
        labels = torch.randint(sizes.vocabulary, (rows,), generator=generator, device=context.device)
        labels[::5] = -100
        return {"logits": logits, "labels": labels}

    def ours(t: Tensors, p: float) -> Tensor:
        with context.ours():
            return ops.cross_entropy(t["logits"], t["labels"])

    def eager(t: Tensors, p: float) -> Tensor:
        return F.cross_entropy(t["logits"], t["labels"])

    def liger(t: Tensors, p: float) -> Tensor:
        from liger_kernel.transformers.functional import liger_cross_entropy

        return liger_cross_entropy(t["logits"], t["labels"])

    def costs(t: Tensors) -> dict[str, Cost]:
        # The logits read once and their gradient written once; 9,830 x 30,522 in bfloat16: 279 us at 4.3 TB/s.
        return {"step": Cost(2 * t["logits"].numel() * t["logits"].element_size())}

    def flash(t: Tensors, p: float) -> Tensor:
        return peers.flash_cross_entropy(t)

    providers = (
        Provider("bert_fast", ours),
        Provider("eager", eager),
        Provider("torch.compile", context.compiled(eager)),
        Provider("liger", liger, missing=missing("liger_kernel", context)),
        Provider("flash-attn", flash, missing=missing("flash_attn", context)),
    )
    return Spec("cross_entropy", make, eager, providers, costs, ("step",), ("logits",))


def linear_cross_entropy(context: Context, p: float) -> Spec:
    """The decoder's product and the loss together: bounded by its three products; what differs is the memory."""

    def make(tokens: int, seed: int) -> Tensors:
        sizes, generator = context.sizes, context.generator(seed)
        rows = sizes.loss_rows if tokens == sizes.tokens else min(512, sizes.loss_rows)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=context.device).to(context.dtype)

        labels = torch.randint(sizes.vocabulary, (rows,), generator=generator, device=context.device)
        hidden, weight = randn(rows, sizes.hidden), randn(sizes.vocabulary, sizes.hidden) / 16
        return {"hidden": hidden, "weight": weight, "bias": randn(sizes.vocabulary), "labels": labels}

    def ours(t: Tensors, p: float) -> Tensor:
        with context.ours():
            return ops.linear_cross_entropy(t["hidden"], t["weight"], t["bias"], t["labels"], drop_ignored=False)

    def eager(t: Tensors, p: float) -> Tensor:
        return F.cross_entropy(F.linear(t["hidden"], t["weight"], t["bias"]), t["labels"])

    def liger(t: Tensors, p: float) -> Tensor:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy(t["hidden"], t["weight"], t["labels"], t["bias"])

    def costs(t: Tensors) -> dict[str, Cost]:
        (rows, hidden), classes, size = t["hidden"].shape, len(t["weight"]), t["hidden"].element_size()
        return {"step": Cost(2 * size * hidden * (rows + classes), 6 * rows * hidden * classes)}

    providers = (
        Provider("bert_fast", ours),
        Provider("eager", eager),
        Provider("torch.compile", context.compiled(eager)),
        Provider("liger", liger, missing=missing("liger_kernel", context)),
    )
    leaves, terms = ("hidden", "weight", "bias"), context.sizes.vocabulary
    return Spec("linear_cross_entropy", make, eager, providers, costs, ("step",), leaves, terms=terms)


def unpad(context: Context, p: float) -> Spec:
    """Mask to indices; the one op that waits for the GPU, so its time is a latency."""
    length = 16 if context.small else 128

    def make(tokens: int, seed: int) -> Tensors:
        batch = max(1, tokens // length)
        lengths = torch.randint(1, length + 1, (batch, 1), generator=context.generator(seed), device=context.device)
        return {"mask": torch.arange(length, device=context.device) < lengths}

    def ours(t: Tensors, p: float) -> Tensor:
        with context.ours():
            return ops.unpad(t["mask"])[0]

    def eager(t: Tensors, p: float) -> Tensor:
        mask = t["mask"]
        lengths = mask.sum(1)
        cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return torch.nonzero(mask.flatten()).squeeze(1)[: int(cu_seqlens[-1])]

    def truth(t: Tensors, p: float) -> Tensor:
        return torch.nonzero(t["mask"].flatten()).squeeze(1)

    def costs(t: Tensors) -> dict[str, Cost]:
        return {"forward": Cost(t["mask"].numel() + 8 * int(t["mask"].sum()))}

    providers = (Provider("bert_fast", ours), Provider("eager", eager))
    return Spec("unpad", make, truth, providers, costs, ("forward",), exact=True)


def _lengths(context: Context, tokens: int, seed: int) -> Tensor:
    """Lengths of up to 128 (16 in a rehearsal), of so many sequences that all of them padded are ``tokens`` places."""
    longest = 16 if context.small else 128
    count = max(1, tokens // longest)
    return torch.randint(1, longest + 1, (count,), generator=context.generator(seed), device=context.device)


def _padding(context: Context, p: float, *, leave: bool) -> Spec:
    """Rows out of a padded batch (``leave``) or back into it: every row read once, every row or place written once."""

    def make(tokens: int, seed: int) -> Tensors:
        lengths = _lengths(context, tokens, seed)
        mask = torch.arange(16 if context.small else 128, device=context.device) < lengths[:, None]
        indices = mask.flatten().nonzero().squeeze(1)
        shape = (*mask.shape, context.sizes.hidden) if leave else (len(indices), context.sizes.hidden)
        x = torch.randn(shape, generator=context.generator(seed), device=context.device).to(context.dtype)
        return {"x": x, "indices": indices, "shape": tuple(mask.shape)}

    def ours(t: Tensors, p: float) -> Tensor:
        with context.ours():
            return ops.unpad_rows(t["x"], t["indices"]) if leave else ops.pad_rows(t["x"], t["indices"], *t["shape"])

    def eager(t: Tensors, p: float) -> Tensor:
        if leave:
            return t["x"].flatten(0, 1)[t["indices"]]
        batch, seqlen = t["shape"]
        return t["x"].new_zeros(batch * seqlen, t["x"].shape[1]).index_put((t["indices"],), t["x"])

    def costs(t: Tensors) -> dict[str, Cost]:
        (batch, seqlen), tokens = t["shape"], len(t["indices"])
        row = t["x"].shape[-1] * t["x"].element_size()
        gather, scatter = Cost(2 * tokens * row + 8 * tokens), Cost((batch * seqlen + tokens) * row + 8 * tokens)
        return {"forward": gather, "backward": scatter} if leave else {"forward": scatter, "backward": gather}

    providers = (Provider("bert_fast", ours), Provider("eager", eager))
    return Spec("unpad_rows" if leave else "pad_rows", make, eager, providers, costs, _BOTH, ("x",))


def pooling(context: Context, mode: str) -> Spec:
    """Embeddings out of packed rows, of length 1: rows read once; backward, their gradient written once."""

    def make(tokens: int, seed: int) -> Tensors:
        cu_seqlens = F.pad(_lengths(context, tokens, seed).cumsum(0), (1, 0)).int()
        shape = (int(cu_seqlens[-1]), context.sizes.hidden)
        x = torch.randn(shape, generator=context.generator(seed), device=context.device).to(context.dtype)
        return {"x": x, "cu_seqlens": cu_seqlens}

    def ours(t: Tensors, p: float) -> Tensor:
        with context.ours():
            return pool(t["x"], t["cu_seqlens"], mode, normalize=True)

    def eager(t: Tensors, p: float) -> Tensor:
        return reference.pool(t["x"], t["cu_seqlens"], mode, normalize=True)

    def costs(t: Tensors) -> dict[str, Cost]:
        rows = t["x"].numel() * t["x"].element_size()
        vectors = 4 * (len(t["cu_seqlens"]) - 1) * t["x"].shape[1]
        return {"forward": Cost(rows + vectors), "backward": Cost(rows + vectors)}

    providers = (Provider("bert_fast", ours), Provider("eager", eager))
    return Spec(f"pool {mode}", make, eager, providers, costs, _BOTH, ("x",))


SPECS = {
    "embedding_layer_norm": embedding_layer_norm,
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
    "unpad": unpad,
    "unpad_rows": partial(_padding, leave=True),
    "pad_rows": partial(_padding, leave=False),
}
