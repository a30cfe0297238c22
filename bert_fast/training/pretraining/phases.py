"""Loaders one after another, each for a number of batches: sequences of 128 tokens, then of 512."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


class PhasedLoader:
    """Batches of several loaders in turn, over as many epochs of each as it takes; iterating it once is the whole run.

    Args:
        loaders: each with ``state_dict``, as a :class:`bert_fast.training.data.PackedLoader`.
        batches: how many to take from each.
    """

    def __init__(self, loaders: Sequence[Any], batches: Sequence[int]) -> None:
        self.loaders, self.batches = list(loaders), list(batches)
        self._phase = self._taken = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is."""
        phase = min(self._phase, len(self.loaders) - 1)
        return {"phase": self._phase, "taken": self._taken, "loader": self.loaders[phase].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a point."""
        self._phase, self._taken = state["phase"], state["taken"]
        if self._phase < len(self.loaders):
            self.loaders[self._phase].load_state_dict(state["loader"])

    def __iter__(self) -> Iterator[Any]:
        empty = False
        while self._phase < len(self.loaders):
            wanted, before = self.batches[self._phase], self._taken
            if before >= wanted:
                self._phase, self._taken = self._phase + 1, 0
                continue
            for batch in self.loaders[self._phase]:
                self._taken += 1
                yield batch
                if self._taken >= wanted:
                    break
            # What was left right after an epoch's last batch has nothing left of that epoch.
            if empty and self._taken == before:
                raise ValueError("the documents make no batch")
            empty = self._taken == before
