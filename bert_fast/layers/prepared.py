"""A layer as its products alone, for inference on CPU: checked and looked up once, run for every part of a batch."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bert_fast import ops
from bert_fast.layers.invariance import by_rows
from bert_fast.packing import Layout


@dataclass(frozen=True)
class PlainLayer:
    """What a plain :class:`BertLayer` consists of, in inference: no dropout, and none of its modules to be called.

    Attributes:
        products: of queries, keys and values; behind attention; and the feed-forward's two.
        norms: behind attention and behind the feed-forward.
        heads: N.
        approximate: of the GELU between ``up`` and ``down``.
    """

    products: tuple[Any, ...]
    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    heads: int
    approximate: str

    def attend(self, qkv: Tensor, layout: Layout) -> Tensor:
        """``[T, 3 H]`` -> ``[T, H]``."""
        y = ops.attention_joined(
            qkv.view(qkv.shape[0], 3, self.heads, -1),
            layout.cu_seqlens,
            layout.max_seqlen,
            bias=layout.bias,
            key_mask=layout.key_mask,
            window=layout.window,
            plan=layout.plan,
        )
        return y.flatten(1)


@dataclass(frozen=True)
class PreparedLayer(PlainLayer):
    """Of products with packed weights, each a ``PackedLinear``."""

    def __call__(self, x: Tensor, layout: Layout, probabilities: None = None) -> Tensor:
        """``[T, H]`` -> ``[T, H]``."""
        y = self.attend(by_rows(layout.batch_invariant, self.products[0], x), layout)
        return by_rows(layout.batch_invariant, self._behind_attention, y, x)

    def _behind_attention(self, y: Tensor, x: Tensor) -> Tensor:
        _, attended, up, down = self.products
        x = _normalised(attended.add(y, x), self.norms[0])
        return _normalised(down.add(up(x, "gelu", self.approximate), x), self.norms[1])


def _normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return ops.layer_norm(x, norm.weight, norm.bias, norm.eps)
