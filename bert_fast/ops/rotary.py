"""rotary: turn queries and keys by their positions."""

from torch import Tensor

from bert_fast import reference


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021): elements ``i`` and ``i + D / 2`` of a head turn by one angle.

    Args:
        x: ``[T, ..., D]``, queries and keys, of any strides; D is even.
        cos, sin: ``[T, D / 2]``, of each row's angles.

    Returns:
        as ``x``; computed in at least float32.

    Raises:
        ValueError: the shapes do not fit.
    """
    if x.shape[-1] % 2 or cos.shape != sin.shape or cos.shape != (x.shape[0], x.shape[-1] // 2):
        wanted = [x.shape[0], x.shape[-1] // 2]
        raise ValueError(
            f"cos and sin must be {wanted} for x {list(x.shape)}, not {list(cos.shape)}, {list(sin.shape)}"
        )
    return reference.rotary(x, cos, sin)
