"""BERT's self-attention and the projection that follows it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from bert_fast import derived, ops
from bert_fast.config import BertConfig
from bert_fast.layers import blocks
from bert_fast.layers.projection import call, project, project_joined
from bert_fast.layers.residual import ResidualOutput
from bert_fast.packing import Layout


class BertSelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017; Hugging Face's ``BertSelfAttention``) over packed rows."""

    def __init__(self, config: BertConfig, dropout_site: int) -> None:
        super().__init__()
        self.dropout_site = dropout_site
        hidden = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = hidden // config.num_attention_heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, x: Tensor, layout: Layout, probabilities: list[Tensor] | None = None) -> Tensor:
        """``[T, H]`` -> ``[T, H]``; appends the probabilities ``[B, N, S, S]`` to a list if one is given."""
        joined, apart = self._projected(x)
        if layout.rotary is not None:
            joined, apart = None, self._turned(joined, apart, *layout.rotary)
        p = self.dropout.p if self.training else 0.0
        if probabilities is not None:
            q, k, v = apart if joined is None else joined.unbind(1)
            return self._with_probabilities(q, k, v, layout, p, probabilities).flatten(1)
        options: dict[str, Any] = {
            "bias": layout.bias,
            "key_mask": layout.key_mask,
            "window": layout.window,
            "p": p,
            "seed": layout.seed,
            "site": self.dropout_site,
            "plan": layout.plan,
        }
        if joined is None:
            y = ops.attention(*apart, layout.cu_seqlens, layout.max_seqlen, **options)
        else:
            y = ops.attention_joined(joined, layout.cu_seqlens, layout.max_seqlen, **options)
        return y.flatten(1)

    def _projected(self, x: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Queries, keys and values: side by side ``[T, 3, N, D]`` or, where that is None, apart, ``[T, N, D]`` each."""
        heads = (self.num_attention_heads, self.attention_head_size)
        layers = (self.query, self.key, self.value)
        joined = project_joined(layers, x)
        if joined is None:
            return None, tuple(call(layer, x).unflatten(-1, heads) for layer in layers)
        return joined.unflatten(-1, heads), ()

    def _turned(
        self, joined: Tensor | None, apart: tuple[Tensor, ...], cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same apart, queries and keys turned by their rows' rotary positions."""
        if joined is not None:
            q, k = ops.rotary(joined[:, :2], cos, sin).unbind(1)
            return q, k, joined[:, 2]
        q, k, v = apart
        return ops.rotary(q, cos, sin), ops.rotary(k, cos, sin), v

    def _with_probabilities(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, p: float, probabilities: list[Tensor]
    ) -> Tensor:
        """The same by its definition, on a dense layout, because the caller wants to see the probabilities."""
        q, k, v = (x.unflatten(0, layout.padded_shape).transpose(1, 2) for x in (q, k, v))
        mask = layout.bias
        if layout.key_mask is not None:
            visible = layout.key_mask.view(layout.padded_shape)[:, None, None, :]
            mask = torch.zeros(visible.shape, dtype=q.dtype, device=q.device).masked_fill(~visible, -math.inf)
            # A weight of 0 takes nothing of a finite value, which the weight's own gradient is made of.
            v = v.masked_fill(~visible.transpose(2, 3) & ~v.isfinite(), 0)
        scale = 1 / math.sqrt(self.attention_head_size)
        probs = ops.scaled_masked_softmax(
            q @ k.transpose(-1, -2), mask, scale, p=p, seed=layout.seed, site=self.dropout_site
        )
        probabilities.append(probs)
        return (probs @ v).transpose(1, 2).flatten(0, 1)


class JoinedSelfAttention(BertSelfAttention):
    """The same with one linear layer ``qkv: H -> 3 H`` for queries, keys and values."""

    def _projected(self, x: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        heads = (3, self.num_attention_heads, self.attention_head_size)
        return project(self.qkv, x).unflatten(-1, heads), ()


class BertSelfOutput(ResidualOutput):
    """The attention's output projection, residual and LayerNorm."""

    def __init__(self, config: BertConfig, dropout_site: int) -> None:
        super().__init__(config.hidden_size, config, dropout_site)


class BertAttention(nn.Module):
    """Self-attention with its output projection."""

    def __init__(self, config: BertConfig, dropout_site: int) -> None:
        super().__init__()
        self.self = BertSelfAttention(config, dropout_site)
        self.output = BertSelfOutput(config, dropout_site + 1)

    def forward(self, x: Tensor, layout: Layout, probabilities: list[Tensor] | None = None) -> Tensor:
        """``[T, H]`` -> ``[T, H]``."""
        if probabilities is None and blocks.wanted(x):
            y = self._as_block(x, layout)
            if y is not None:
                return y
        return self.output(self.self(x, layout, probabilities), x, layout.seed)

    def _as_block(self, x: Tensor, layout: Layout) -> Tensor | None:
        plain = derived.plain(self.self, BertSelfAttention) and derived.plain(self.output, BertSelfOutput)
        return blocks.attend(self.self, self.output, x, layout) if plain else None
