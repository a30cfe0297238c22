"""The modules that stand on the encoder: pooler, masked-LM head, next-sentence head."""

import torch
from torch import Tensor, nn

from bert_fast import derived, ops
from bert_fast.config import BertConfig
from bert_fast.layers.activations import GELU, activation_function
from bert_fast.layers.invariance import by_rows
from bert_fast.layers.projection import call, project
from bert_fast.ops.library import autocast_dtype, capturing, valueless
from bert_fast.packing import Layout


class BertPooler(nn.Module):
    """``tanh(dense(first token))``."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """``[T, H]`` -> ``[B, H]``."""
        return by_rows(layout.batch_invariant, self._pooled, layout.first_rows(x))

    def _pooled(self, x: Tensor) -> Tensor:
        return torch.tanh(project(self.dense, x))


class BertPredictionHeadTransform(nn.Module):
    """The masked-LM head's own layer: dense, activation, LayerNorm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.hidden_act = config.hidden_act
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, H]`` -> ``[T, H]``."""
        norm, x = self.LayerNorm, project(self.dense, x)
        if self.hidden_act in GELU and derived.plain_norm(norm):
            return ops.gelu_layer_norm(x, norm.weight, norm.bias, norm.eps, GELU[self.hidden_act])
        return call(norm, activation_function(self.hidden_act)(x))


class BertLMPredictionHead(nn.Module):
    """Transform and decoder; the decoder's weight is the word embedding's where the config ties them."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        # The same Parameter under both names that checkpoints use.
        self.bias = self.decoder.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[T, H]`` -> logits ``[T, V]``."""
        return project(self.decoder, self.transform(x))

    def loss(self, x: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
        """The mean cross-entropy of the rows of ``x [T, H]`` that have a label, never holding all their logits."""
        # What is compiled, captured or has no values has no shapes that depend on them: there the op takes rows out.
        later = torch.compiler.is_compiling() or valueless(x) or capturing(x.device)
        if not later:
            x, labels, _ = ops.labelled_rows(x, labels, ignore_index)
        x, decoder = self.transform(x), self.decoder
        if not derived.plain_linear(decoder):
            return ops.cross_entropy(call(decoder, x), labels, ignore_index)
        if x.dtype != decoder.weight.dtype and autocast_dtype(x.device) is None:
            x = x.to(decoder.weight.dtype)
        return ops.linear_cross_entropy(
            x, decoder.weight, decoder.bias, labels, ignore_index, drop_ignored=later
        )


class BertOnlyMLMHead(nn.Module):
    """The masked-LM head alone."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, H]`` -> logits ``[T, V]``."""
        return self.predictions(x)


class BertOnlyNSPHead(nn.Module):
    """The next-sentence head alone."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        """``[B, H]`` -> logits ``[B, 2]``; class 0 stands for "is next"."""
        return project(self.seq_relationship, pooled)


class BertPreTrainingHeads(nn.Module):
    """Both heads of pretraining."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, x: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """``[T, H]`` and ``[B, H]`` -> logits ``[T, V]`` and ``[B, 2]``."""
        return self.predictions(x), project(self.seq_relationship, pooled)
