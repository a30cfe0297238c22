"""LayerNorm and what is fused with it: residual, dropout, bias, GELU."""

from torch import Tensor

from bert_fast import reference


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension; see :func:`bert_fast.reference.layer_norm`."""
    return reference.layer_norm(x, weight, bias, eps)


def dropout_add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, *, p: float = 0.0
) -> Tensor:
    """``LN(residual + dropout(x))``; see :func:`bert_fast.reference.dropout_add_layer_norm`."""
    return reference.dropout_add_layer_norm(x, residual, weight, bias, eps, p=p)


def gelu_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, approximate: str = "none") -> Tensor:
    """``LN(gelu(x))``; see :func:`bert_fast.reference.gelu_layer_norm`."""
    return reference.gelu_layer_norm(x, None, weight, bias, eps, approximate)
