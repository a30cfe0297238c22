"""A checkpoint under today's names: whatever it calls its tensors and however it lays them out."""

from __future__ import annotations

from dataclasses import replace

import torch

from bert_fast.checkpoints import names
from bert_fast.checkpoints.source import CheckpointError, TensorInfo, TensorSource
from bert_fast.checkpoints.tensorflow import TensorBundle


class Translated(TensorSource):
    """A checkpoint with Hugging Face's names and layouts, over one with any that `names` knows.

    Attributes:
        original: the name in the file, for every name here.
        unknown: names of a TensorFlow checkpoint that no rule knows; they are kept as they are.
        foreign: whether the names are another library's, so that all of them have to be known.
        skipped: names in the file that no model wants: optimizer state, and constants that used to be saved.

    Raises:
        CheckpointError: two tensors of the file have the same name today.
    """

    def __init__(self, source: TensorSource) -> None:
        self.path = source.path
        self._source = source
        self._transposed: set[str] = set()
        tensors: dict[str, TensorInfo] = {}
        self.tensors = tensors
        self.original: dict[str, str] = {}
        self.skipped: list[str] = []
        self.unknown: list[str] = []
        self.foreign = isinstance(source, TensorBundle)
        for name, info in source.tensors.items():
            if names.is_buffer(name) or (self.foreign and names.is_training_state(name)):
                self.skipped.append(name)
                continue
            today, transposed = names.modern(name), False
            if self.foreign:
                rule = names.from_tensorflow(name)
                today, transposed = rule or (name, False)
                self.unknown += [] if rule else [name]
            if today in tensors:
                raise CheckpointError(f"{self.path}: {name} and {self.original[today]} both mean {today}")
            if transposed:
                self._transposed.add(today)
                info = replace(info, shape=info.shape[::-1])
            tensors[today], self.original[today] = info, name

    def load(self, name: str) -> torch.Tensor:
        """One tensor by its name of today. It may be a read-only view, and not contiguous."""
        tensor = self._source.load(self.original[name])
        return tensor.permute(*reversed(range(tensor.dim()))) if name in self._transposed else tensor

    def close(self) -> None:
        """Close the checkpoint underneath."""
        self._source.close()
