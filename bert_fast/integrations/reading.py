"""Whether places that the attention mask hides are read: the answer for an encoder, and for the call at hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

_owner_calls: ContextVar[bool] = ContextVar("owner_calls", default=False)


class Verdict(NamedTuple):
    """``hidden_positions``, and why in words."""

    hidden_positions: str
    why: str


def owner_calls() -> bool:
    """Whether the call comes from an owner that does not read hidden places; never so where a compiler traces."""
    return not torch.compiler.is_compiling() and _owner_calls.get()


@contextmanager
def as_owner() -> Iterator[None]:
    """Within the block, calls come from an owner that does not read hidden places."""
    token = _owner_calls.set(True)
    try:
        yield
    finally:
        _owner_calls.reset(token)
