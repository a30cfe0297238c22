"""What training is fed with: examples, each ready for the model, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bert_fast.packing import PackedBatch
from bert_fast.training.arrays import token_ids


@dataclass(frozen=True, eq=False)
class Example:
    """One example: its tokens, its labels, and whatever a task needs back with them.

    Attributes:
        input_ids: int32 ``[tokens]`` (other integers are converted), special tokens included. Of an example of several
            sequences (the choices of a question, a window of pairs) all of them, one after another.
        token_type_ids: int32 ``[tokens]``, or None for all 0.
        labels: what the collator's kind of label says; see :class:`PackedCollator`.
        info: anything the task wants back with the batch, such as a row's id, word ids or offsets.
        lengths: of an example of several sequences each one's tokens; None for a single sequence.
        numbers: int64 ``[sequences]``, by which masks are drawn; None where nothing is drawn.

    Raises:
        TypeError: ids that are no integers.
        ValueError: arrays that do not fit each other.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None = None
    labels: Any = None
    info: Any = None
    lengths: tuple[int, ...] | None = None
    numbers: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_ids", _ids("input_ids", self.input_ids))
        tokens = len(self.input_ids)
        if self.token_type_ids is not None:
            object.__setattr__(self, "token_type_ids", _ids("token_type_ids", self.token_type_ids))
            if len(self.token_type_ids) != tokens:
                raise ValueError(
                    f"token_type_ids must be [{tokens}] as input_ids are, not [{len(self.token_type_ids)}]"
                )
        if self.lengths is not None:
            object.__setattr__(self, "lengths", tuple(map(int, self.lengths)))
            if sum(self.lengths) != tokens or min(self.lengths, default=0) < 0:
                raise ValueError(f"lengths must add up to the {tokens} tokens of input_ids, not {self.lengths}")

    @classmethod
    def of_sequences(
        cls,
        input_ids: Sequence[Sequence[int] | np.ndarray],
        token_type_ids: Sequence[Sequence[int] | np.ndarray] | None = None,
        labels: Any = None,
        info: Any = None,
    ) -> Example:
        """An example of several sequences, such as the choices of a question."""
        lengths = tuple(map(len, input_ids))
        types = None if token_type_ids is None else _joined(token_type_ids)
        return cls(_joined(input_ids), types, labels, info, lengths)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence."""
        return (len(self.input_ids),) if self.lengths is None else self.lengths


class Batch(dict[str, Any]):
    """A batch for ``model(**batch)``, and beside it what is no argument of the model.

    Attributes:
        label_counts: of each kind of label how many the loss is a mean over, counted on the host: the weight of this
            batch among others. All 0 for a filler.
        indices: int64, the examples' numbers in the data set; none for a filler. None outside a loader.
        infos: the examples' ``info``.
        tokens: how many tokens the batch has, padding not counted.
        filler: whether it only keeps this rank in step with the others: it holds an example that is not this rank's to
            learn from or to count, and every count is 0.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        *,
        label_counts: dict[str, int] | None = None,
        indices: np.ndarray | None = None,
        infos: Sequence[Any] = (),
        tokens: int = 0,
        filler: bool = False,
    ) -> None:
        super().__init__(data or {})
        self.label_counts = dict(label_counts or {})
        self.indices = indices
        self.infos = list(infos)
        self.tokens = tokens
        self.filler = filler

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Every tensor and PackedBatch moved as ``Tensor.to`` does, beside the same facts."""
        return self._map(lambda value: value.to(*args, **kwargs))

    def pin_memory(self) -> Batch:
        """Every tensor and PackedBatch in page-locked memory, beside the same facts."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function: Any) -> Batch:
        moved = {k: function(v) if isinstance(v, (torch.Tensor, PackedBatch)) else v for k, v in self.items()}
        new = Batch(moved)
        new.__dict__.update(self.__dict__)
        return new


def _ids(name: str, given: Any) -> np.ndarray:
    return token_ids(name, given).astype(np.int32, copy=False)


def _joined(rows: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    parts = [np.asarray(row, dtype=np.int32) for row in rows]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
