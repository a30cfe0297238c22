"""The activations that BERT checkpoints name in ``hidden_act``."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GELU = {"gelu": "none", "gelu_python": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}
_OTHERS = {"relu": F.relu, "silu": F.silu, "swish": F.silu, "tanh": torch.tanh}


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The function behind a ``hidden_act``.

    Raises:
        ValueError: the name is not one of those known here.
    """
    if name in GELU:
        return functools.partial(F.gelu, approximate=GELU[name])
    if name in _OTHERS:
        return _OTHERS[name]
    raise ValueError(f"hidden_act must be one of {sorted([*GELU, *_OTHERS])}, not {name!r}")
