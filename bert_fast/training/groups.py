"""Which parameters decay: biases and LayerNorms do not, as BERT was trained."""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of ``model`` that need gradients as two groups for an optimizer: with decay, and without.

    Without decay are all parameters of normalisation layers (a class whose name ends in "Norm"), all that are called
    "bias", and all others with at most one dimension. A parameter that two modules share is named once. A group that
    would be empty is left out.
    """
    norms = {id(p) for m in model.modules() if type(m).__name__.endswith("Norm") for p in m.parameters(recurse=False)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = id(parameter) in norms or name.rpartition(".")[2] == "bias" or parameter.ndim <= 1
        (plain if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
