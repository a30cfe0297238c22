"""Any iterable of batches as one that can be left and taken up again, and the batches of a step out of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from bert_fast.training.randomness import generators, set_generators


def resumable(loader: Any, accelerator: Accelerator) -> Any:
    """``loader`` itself if it keeps its position; a ``DataLoader`` shared out among the processes, and counted."""
    if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
        return loader
    if isinstance(loader, DataLoader):
        loader = accelerator.prepare_data_loader(loader, device_placement=False)
    return CountedLoader(loader)


class CountedLoader:
    """An iterable of batches that can be iterated again, with its position: passes done, and batches of this one.

    To go on in the middle of a pass, the generators are set to where they were when it began, which shuffles a
    ``DataLoader`` the same way, and the batches that are done are made and thrown away. Batches that depend on the
    global generators in any other way would come out different: draw from a generator of your own.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._epoch = self._taken = self._skip = 0
        self._begun: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed out."""
        return {"epoch": self._epoch, "taken": self._taken, "begun": self._begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a position."""
        self._epoch, self._taken, self._begun = state["epoch"], state["taken"], state["begun"]
        self._skip = self._taken

    def __iter__(self) -> Iterator[Any]:
        now, host = generators(torch.device("cpu")), torch.device("cpu")
        if self._skip:
            set_generators(self._begun, host)
        else:
            self._begun = now
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(self._epoch)
        batches = iter(self.loader)
        if self._skip:
            for _ in range(self._skip):
                next(batches, None)
            set_generators(now, host)
        self._taken, self._skip = self._skip, 0
        for batch in batches:
            self._taken += 1
            yield batch
        self._epoch, self._taken = self._epoch + 1, 0


@dataclass(frozen=True)
class Group:
    """The batches of one step.

    Attributes:
        batches: at least one; fewer than asked for at the end of a pass.
        position: of the loader after them.
        ends_epoch: whether the pass over the data ends with them.
    """

    batches: list[Any]
    position: dict[str, Any]
    ends_epoch: bool


def groups(loader: Any, size: int) -> Iterator[Group]:
    """The rest of the current pass, ``size`` batches at a time; one group is read ahead, to know which is the last."""
    held: list[Any] = []
    position = loader.state_dict()
    batches = iter(loader)
    while True:
        ahead = list(itertools.islice(batches, size))
        if not ahead:
            break
        if held:
            yield Group(held, position, False)
        held, position = ahead, loader.state_dict()
    if held:
        yield Group(held, loader.state_dict(), True)
