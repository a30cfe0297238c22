"""The numeric contract: how far from float64 a result may lie, by the error of PyTorch's own in the same dtype."""

import math

import torch
from torch import Tensor

FEW = 64  # elements, of which a mean says too little: with fewer only the largest error is judged
_UNIT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def allowed(eager_error: Tensor, truth: Tensor, dtype: torch.dtype, terms: int) -> tuple[float, float]:
    """The bounds of a result's root mean square error and of its largest.

    With u the dtype's unit roundoff, and c 1 or, in float32, the square root of ``terms``, they are
    ``2 * rms(eager_error) + c * u * rms(truth)`` and ``4 * max|eager_error| + 8 * u * max|truth|``.

    Args:
        eager_error, truth: float64, of one shape and not empty.
        terms: the length of the longest sum behind an element.
    """
    unit = _UNIT_ROUNDOFF.get(dtype, 2.0**-53)
    factor = math.sqrt(terms) if dtype == torch.float32 else 1.0
    return 2 * rms(eager_error) + factor * unit * rms(truth), 4 * largest(eager_error) + 8 * unit * largest(truth)


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.square().mean().sqrt().item()


def largest(x: Tensor) -> float:
    """The largest absolute value."""
    return x.abs().max().item()
