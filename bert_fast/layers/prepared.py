"""A layer as its products alone, for inference on CPU: checked and looked up once, run for every part of a batch."""

from dataclasses import dataclass

from torch import Tensor, nn

from bert_fast import ops
from bert_fast.layers.invariance import by_rows
from bert_fast.ops.linear import PackedLinear
from bert_fast.packing import Layout


@dataclass(frozen=True)
class PreparedLayer:
    """What a plain :class:`BertLayer` computes without dropout, by its packed products and none of its modules.

    Attributes:
        products: of queries, keys and values; behind attention; and the feed-forward's two.
        norms: behind attention and behind the feed-forward.
        heads: N.
        approximate: of the GELU between ``up`` and ``down``.
    """

    products: tuple[PackedLinear, ...]
    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    heads: int
    approximate: str

    def __call__(self, x: Tensor, layout: Layout, probabilities: None = None) -> Tensor:
        """``[T, H]`` -> ``[T, H]``."""
        qkv = by_rows(layout.batch_invariant, self.products[0], x).view(x.shape[0], 3, self.heads, -1)
        y = ops.attention_joined(
            qkv,
            layout.cu_seqlens,
            layout.max_seqlen,
            bias=layout.bias,
            key_mask=layout.key_mask,
            window=layout.window,
            plan=layout.plan,
        )
        return by_rows(layout.batch_invariant, self._behind_attention, y.flatten(1), x)

    def _behind_attention(self, y: Tensor, x: Tensor) -> Tensor:
        _, attended, up, down = self.products
        x = _normalised(attended.add(y, x), self.norms[0])
        return _normalised(down.add(up(x, "gelu", self.approximate), x), self.norms[1])


def _normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return ops.layer_norm(x, norm.weight, norm.bias, norm.eps)
