"""Layers that normalise what goes into a branch, not what comes out of a sum (Xiong et al., 2020)."""

from torch import Tensor, nn

from bert_fast import derived, ops
from bert_fast.layers.projection import call, project, project_and_add
from bert_fast.ops.library import plain_tensors
from bert_fast.packing import Layout


class BranchOutput(nn.Module):
    """``residual + dropout(dense(x))``: what closes a branch where the norm stands before it."""

    def __init__(self, dense: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.dense = dense
        self.dropout = dropout

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """``[T, in]`` and ``[T, H]`` -> ``[T, H]``."""
        dropout = self.dropout
        idle = derived.plain(dropout, nn.Identity) or (
            derived.plain(dropout, nn.Dropout) and not (dropout.training and dropout.p > 0)
        )
        summed = project_and_add(self.dense, x, residual) if idle else None
        return residual + dropout(project(self.dense, x)) if summed is None else summed


class PreNormLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``.

    Args:
        attention_norm: of the attention's input; ``nn.Identity`` where it comes normalised.
        attention: as :class:`bert_fast.layers.attention.BertSelfAttention`.
        attended: closes the attention.
        norm: of the feed-forward's input.
        intermediate: the feed-forward's first half.
        output: closes the feed-forward.
        local: whether the attention is local: sees ``layout.local``.
    """

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: nn.Module,
        attended: BranchOutput,
        norm: nn.Module,
        intermediate: nn.Module,
        output: BranchOutput,
        local: bool,
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.attended = attended
        self.norm = norm
        self.intermediate = intermediate
        self.output = output
        self.local = local

    def forward(self, x: Tensor, layout: Layout, probabilities: list[Tensor] | None = None) -> Tensor:
        """``[T, H]`` -> ``[T, H]``."""
        seen = layout.local if self.local and layout.local is not None else layout
        x = self.attended(self.attention(normalised(self.attention_norm, x), seen, probabilities), x)
        return self.output(self.intermediate(normalised(self.norm, x)), x)


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)`` over ``[T, H]`` for a LayerNorm, with or without bias, by the op; other modules are called."""
    plain = derived.plain(norm, nn.LayerNorm) and norm.weight is not None and norm.weight.dim() == 1
    if plain and plain_tensors(norm.weight, *(() if norm.bias is None else (norm.bias,))):
        return ops.layer_norm(x, norm.weight, norm.bias, norm.eps)
    return call(norm, x)
