"""The encoder: BERT's layers, one after another, over packed rows."""

import functools

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bert_fast.config import BertConfig
from bert_fast.layers.activations import activation_function
from bert_fast.layers.attention import BertAttention
from bert_fast.layers.projection import project
from bert_fast.layers.residual import ResidualOutput
from bert_fast.packing import Layout


class BertIntermediate(nn.Module):
    """The first half of the feed-forward block: a projection and its activation."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.hidden_act = config.hidden_act
        activation_function(self.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, H]`` -> ``[T, I]``."""
        return project(self.dense, x, self.hidden_act)


class BertOutput(ResidualOutput):
    """The second half: the projection back, residual and LayerNorm."""

    def __init__(self, config: BertConfig, dropout_site: int) -> None:
        super().__init__(config.intermediate_size, config, dropout_site)


class BertLayer(nn.Module):
    """One layer: attention and feed-forward, each with its residual and LayerNorm behind it.

    ``index``: its place in the encoder, which tells its dropout masks from the other layers'.
    """

    def __init__(self, config: BertConfig, index: int = 0) -> None:
        super().__init__()
        self.attention = BertAttention(config, 3 * index)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config, 3 * index + 2)

    def forward(self, x: Tensor, layout: Layout, probabilities: list[Tensor] | None = None) -> Tensor:
        """``[T, H]`` -> ``[T, H]``."""
        x = self.attention(x, layout, probabilities)
        return self.output(self.intermediate(x), x, layout.seed)


class BertEncoder(nn.Module):
    """All layers. ``gradient_checkpointing`` recomputes each layer in the backward pass instead of storing it."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config, index) for index in range(config.num_hidden_layers))
        self.gradient_checkpointing = False

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        *,
        hidden_states: list[Tensor] | None = None,
        probabilities: list[Tensor] | None = None,
    ) -> Tensor:
        """``[T, H]`` -> ``[T, H]``; each layer's input and the result are appended to ``hidden_states`` if given."""
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled() and probabilities is None
        for layer in self.layer:
            if hidden_states is not None:
                hidden_states.append(x)
            run = functools.partial(checkpoint, layer, use_reentrant=False) if recompute else layer
            x = run(x, layout, probabilities)
        if hidden_states is not None:
            hidden_states.append(x)
        return x
