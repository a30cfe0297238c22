"""Examples on disk: for more of them than memory holds."""

from __future__ import annotations

import operator
import pickle
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bert_fast.training.data.corpus import temporary_folder
from bert_fast.training.data.example import Example

_FIELDS = ("input_ids", "token_type_ids", "labels", "info", "lengths", "numbers")


class StoredExamples:
    """A sequence of examples that lie in a temporary file and are read as they are asked for.

        examples = StoredExamples(rows.map(task.encode))
        loader = PackedLoader(examples, BatchPlan(examples.lengths, batch_size=32, shuffle=True), collate)

    In memory are 16 bytes an example. The file goes with this object.

    Args:
        examples: read once, as a stream; their labels and info must be picklable.

    Attributes:
        lengths: int64 ``[n]``, tokens of each.
    """

    lengths: np.ndarray

    def __init__(self, examples: Iterable[Example]) -> None:
        self._path = temporary_folder(self) / "examples.bin"
        ends, lengths = array("q", [0]), array("q")
        with open(self._path, "wb") as file:
            for example in examples:
                file.write(pickle.dumps([getattr(example, name) for name in _FIELDS], protocol=5))
                ends.append(file.tell())
                lengths.append(len(example))
        self._ends, self.lengths = np.asarray(ends), np.asarray(lengths)
        self._open()

    def _open(self) -> None:
        # an empty file cannot be mapped
        self._bytes: Any = np.memmap(self._path, dtype=np.uint8, mode="r") if len(self) else b""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        place %= len(self)
        return Example(*pickle.loads(self._bytes[self._ends[place] : self._ends[place + 1]].data))

    def __iter__(self) -> Iterator[Example]:
        return (self[place] for place in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_bytes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()
