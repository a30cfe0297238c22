"""What every checkpoint format offers: names, shapes and dtypes at once, and the tensors one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TypeVar

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


class TensorSource(ABC):
    """An open checkpoint; use it in a `with` statement.

    Attributes:
        path: the file or directory it was opened from, for messages.
        tensors: every tensor, by the name it has there.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]

    @abstractmethod
    def load(self, name: str) -> torch.Tensor:
        """Read one tensor to the CPU. It may be a read-only view of a mapped file: copy it before it is changed.

        Raises CheckpointError where the bytes are not there or not the ones that were written.
        """

    def release(self) -> None:  # noqa: B027 - most keep nothing
        """Give up memory that is only kept for speed; what is loaded later is read anew."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Close the files. Tensors that were loaded stay valid."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
