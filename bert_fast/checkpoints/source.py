"""What every checkpoint format offers: names, shapes and dtypes at once, and the tensors one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import torch

_Self = TypeVar("_Self")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, is broken, or does not fit the model. The message names the file or argument,
    what was found, and what would do."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint, here or on the hub. Also a FileNotFoundError, as `transformers` users expect."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read. `dtype` is None for what torch has no type for (strings)."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None

    @property
    def nbytes(self) -> int:
        """The bytes of its values."""
        return prod(self.shape) * (self.dtype.itemsize if self.dtype else 0)


class TensorSource(Protocol):
    """An open checkpoint."""

    path: Path
    """The file or directory it was opened from, for messages."""

    tensors: Mapping[str, TensorInfo]
    """Every tensor, by the name it has in the file."""

    def load(self, name: str) -> torch.Tensor:
        """Read one tensor to the CPU. It may be a read-only view of a mapped file: copy it before it is changed.

        Raises CheckpointError where the bytes are not there or not the ones that were written.
        """
        ...

    def close(self) -> None:
        """Close the files. Tensors that were loaded stay valid."""
        ...


class Closing:
    """Gives a TensorSource its `with` statement."""

    def close(self) -> None:
        """Nothing to close, unless a subclass holds files open."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
