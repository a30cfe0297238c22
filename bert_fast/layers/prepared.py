"""A layer as its products alone, for inference on CPU: checked and looked up once, run for every part of a batch."""

from dataclasses import dataclass

from torch import Tensor, nn

from bert_fast import ops
from bert_fast.ops.linear import PackedLinear
from bert_fast.packing import Layout


@dataclass(frozen=True)
class PreparedLayer:
    """What a plain :class:`BertLayer` computes without dropout, by its packed products and none of its modules.

    Attributes:
        qkv, attended, up, down: the products, in the order of their turn.
        attended_norm, norm: behind attention and behind the feed-forward.
        heads: N.
        approximate: of the GELU between ``up`` and ``down``.
    """

    qkv: PackedLinear
    attended: PackedLinear
    up: PackedLinear
    down: PackedLinear
    attended_norm: nn.LayerNorm
    norm: nn.LayerNorm
    heads: int
    approximate: str

    def __call__(self, x: Tensor, layout: Layout, probabilities: None = None) -> Tensor:
        """``[T, H]`` -> ``[T, H]``."""
        qkv = self.qkv(x).view(x.shape[0], 3, self.heads, -1)
        seen = {"bias": layout.bias, "key_mask": layout.key_mask, "window": layout.window, "plan": layout.plan}
        y = ops.attention_joined(qkv, layout.cu_seqlens, layout.max_seqlen, **seen)
        x = _normalised(self.attended.add(y.flatten(1), x), self.attended_norm)
        return _normalised(self.down.add(self.up(x, "gelu", self.approximate), x), self.norm)


def _normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return ops.layer_norm(x, norm.weight, norm.bias, norm.eps)
