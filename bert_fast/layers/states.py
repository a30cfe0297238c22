"""Hidden states as callers see them: padded, and the very tensors that the next layer's rows are made of."""

import torch
from torch import Tensor

from bert_fast.packing import Layout


class HiddenStates:
    """The hidden states that a caller asked for, ``[B, S, H]`` each; for packed input ``[T, H]``.

    A gradient that is to be read at one of them (``retain_grad``, ``torch.autograd.grad``, a hook) has to pass through
    it: with gradients, the rows that go on are taken out of the padded tensor again. That is a gather of T rows a
    state, and in the backward pass a scatter (T rows read, B * S written) and a gather of T; nothing where no place of
    the batch is left out, nothing without gradients. What torch.compile makes of a whole model is one node of autograd,
    at whose outputs no gradient of another can be read, be the model this package's or not.

    Where the layout zeroes hidden places, rows that are computed all the same (a label, a pooler reads them) go on
    beside it: at such a place the state and its gradient are zeros.

    Attributes:
        states: one tensor for each call of :meth:`keep`.
    """

    def __init__(self, layout: Layout, dtype: torch.dtype | None = None) -> None:
        """``dtype``: of the states, where it is another than that of the rows."""
        self.layout, self.dtype = layout, dtype
        self.states: list[Tensor] = []

    def keep(self, x: Tensor) -> Tensor:
        """Add rows ``x [T, H]`` as a state; go on with what is returned, the same rows."""
        layout = self.layout
        state = layout.unpack(x)
        if self.dtype is not None:
            state = state.to(self.dtype)
        self.states.append(state)
        if not (torch.is_grad_enabled() and state.requires_grad):
            return x
        rows = layout.pack(state).to(x.dtype)
        if layout.key_mask is None or not layout.zero_hidden:
            return rows
        return torch.where(layout.key_mask[:, None], rows, x)
