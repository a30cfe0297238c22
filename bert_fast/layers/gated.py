"""The gated first half of a feed-forward block."""

from torch import Tensor, nn

from bert_fast.layers.activations import activation_function
from bert_fast.layers.projection import call, project, project_joined


class GatedIntermediate(nn.Module):
    """``dropout(activation(a) * b)`` for the halves ``a, b`` of one projection, or for two (Shazeer, 2020).

    Args:
        layers: one linear layer ``H -> 2 I``, whose first half is activated, or two ``H -> I``.
        hidden_act: the activation.
        dropout: between the product and the projection back.
    """

    def __init__(self, layers: tuple[nn.Module, ...], hidden_act: str, dropout: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.hidden_act = hidden_act
        self.dropout = dropout
        activation_function(hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, H]`` -> ``[T, I]``."""
        layers = tuple(self.layers)
        if len(layers) == 1:
            active, gate = project(layers[0], x).chunk(2, -1)
        else:
            joined = project_joined(layers, x)
            active, gate = (call(layer, x) for layer in layers) if joined is None else joined.unbind(1)
        return self.dropout(activation_function(self.hidden_act)(active) * gate)
