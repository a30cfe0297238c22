"""What closes both halves of a layer: a projection, dropout, the residual, LayerNorm."""

from torch import Tensor, nn

from bert_fast import derived, ops
from bert_fast.config import BertConfig
from bert_fast.layers.projection import call, project, project_and_add, project_split


class ResidualOutput(nn.Module):
    """``LN(residual + dropout(dense(x)))``: the shape of Hugging Face's ``BertSelfOutput`` and ``BertOutput``."""

    def __init__(self, in_features: int, config: BertConfig, dropout_site: int) -> None:
        super().__init__()
        self.dropout_site = dropout_site
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor, seed: Tensor | None = None) -> Tensor:
        """``[T, in_features]`` and ``[T, H]`` -> ``[T, H]``; ``seed``: of the kernels' dropout, one per forward."""
        norm, dropout = self.LayerNorm, self.dropout
        if not (derived.plain_norm(norm) and derived.plain(dropout, nn.Dropout)):
            return call(norm, dropout(project(self.dense, x)) + residual)
        p = dropout.p if dropout.training else 0.0
        summed = project_and_add(self.dense, x, residual) if p == 0 else None
        if summed is not None:
            return ops.layer_norm(summed, norm.weight, norm.bias, norm.eps)
        y, bias = project_split(self.dense, x)
        return ops.dropout_add_layer_norm(
            y, residual, norm.weight, norm.bias, norm.eps, x_bias=bias, p=p, seed=seed, site=self.dropout_site
        )
