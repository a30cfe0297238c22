"""scaled_masked_softmax: attention probabilities, for when they are asked for."""

from torch import Tensor

from bert_fast import reference


def scaled_masked_softmax(scores: Tensor, mask: Tensor | None = None, scale: float = 1.0, *, p: float = 0.0) -> Tensor:
    """``dropout(softmax(scale * scores + mask))``; see :func:`bert_fast.reference.scaled_masked_softmax`."""
    return reference.scaled_masked_softmax(scores, mask, scale, p=p)
