"""Batches of one epoch after another, the same for any number of workers, from any point on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bert_fast.training.data.example import Batch, Example
from bert_fast.training.data.plan import BatchPlan


class Parts(Protocol):
    """Data of an epoch that comes part by part, such as a corpus larger than memory."""

    @property
    def identity(self) -> str:
        """Of all that makes the examples what they are."""

    def part_count(self, epoch: int) -> int:
        """How many parts the epoch has."""

    def part(self, epoch: int, number: int) -> Part:
        """One of them."""


class Part(Protocol):
    """Examples that are made when they are asked for."""

    lengths: np.ndarray

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> list[Example]:
        """These examples, in this order."""


class PackedLoader:
    """Batches as a plan deals them out, made by a collator.

    Iterating yields what is left of the current epoch; iterating again, the next epoch. Left in the middle, it goes on
    with the batch after the last one that was handed out. ``state_dict()`` is that point: it is the same for every
    rank, and valid for any number of ranks and workers.

    A rank whose share of a batch is empty gets a filler: a batch of the shortest example with ``filler`` set, no
    ``indices``, and every one of its ``label_counts`` 0. It keeps the rank in step with the others, where a collective
    operation waits for all; weighted by its count, its loss is nothing.

    Args:
        examples: a sequence of examples; or an object with ``part_count(epoch)``, ``part(epoch, number)`` and
            ``identity``, such as :class:`PretrainingData`, whose parts have ``lengths`` and ``take(indices)``.
        plan: of the examples' lengths; of data in parts, one whose lengths are replaced part by part.
        collate: list of examples -> :class:`Batch`. If it has a method ``for_epoch(epoch)``, that gives the one to use.
        rank, world_size: this process's number, and how many share a batch.
        num_workers: processes that make batches; 0: this one.
        pin_memory: whether batches come in page-locked memory. Nothing without CUDA.

    Raises:
        ValueError: as many lengths in the plan as there are examples are needed.
    """

    def __init__(
        self,
        examples: Sequence[Example] | Parts,
        plan: BatchPlan,
        collate: Callable[[list[Example]], Batch],
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.examples: Any = examples
        self._in_parts = hasattr(examples, "part_count")
        count = len(plan.lengths) if self._in_parts else len(cast(Sequence[Example], examples))
        if count != len(plan.lengths):
            raise ValueError(f"the plan is for {len(plan.lengths)} examples, not {count}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0 .. world_size - 1 = {world_size - 1}, not {rank}")
        self.plan = plan
        self.collate = collate
        self.rank, self.world_size = rank, world_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self._identity = f"{plan.identity} {getattr(examples, 'identity', '')}".strip()
        self._epoch = self._part = self._step = 0

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, or the one that the last batch ended."""
        return self._epoch

    def __len__(self) -> int:
        """Batches of the current epoch, from its beginning. Of data in parts, every part is looked at."""
        return sum(len(self._planned(number)[1]) for number in range(self._part_count()))

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is: ``{"epoch", "part", "step", "of"}``, the last one telling plan and examples."""
        return {"epoch": self._epoch, "part": self._part, "step": self._step, "of": self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a point. Batches up to it are not made.

        Raises:
            ValueError: it is no such state, or one of another plan or other examples, of which it means nothing.
        """
        missing = {"epoch", "part", "step", "of"} - state.keys()
        if missing:
            raise ValueError(f"no {' and '.join(sorted(missing))} in the loader's state {state}")
        if state["of"] != self._identity:
            raise ValueError(
                "the loader's state is of another plan or other examples, and where it stands means nothing here: "
                "have the rows or the batches changed since it was saved?"
            )
        self._epoch, self._part, self._step = (int(state[name]) for name in ("epoch", "part", "step"))

    def __iter__(self) -> Iterator[Batch]:
        while self._part < self._part_count():
            part, batches = self._planned(self._part)
            for batch in self._load(part, batches):
                self._step += 1
                yield batch
            self._part, self._step = self._part + 1, 0
        self._epoch, self._part = self._epoch + 1, 0

    def _part_count(self) -> int:
        return self.examples.part_count(self._epoch) if self._in_parts else 1

    def _planned(self, number: int) -> tuple[Any, list[np.ndarray]]:
        part, plan = self.examples, self.plan
        if self._in_parts:
            part = self.examples.part(self._epoch, number)
            plan = plan.with_lengths(part.lengths)
        return part, plan.batches(self._epoch, self.rank, self.world_size, part=number)

    def _load(self, part: Any, batches: list[np.ndarray]) -> Iterator[Batch]:
        collate = self.collate
        if hasattr(collate, "for_epoch"):
            collate = collate.for_epoch(self._epoch)
        lengths = part.lengths if self._in_parts else self.plan.lengths
        made = _MadeBatches(part, batches, collate, int(np.argmin(lengths)) if len(lengths) else 0)
        return iter(
            DataLoader(
                made,
                batch_size=None,
                sampler=range(self._step, len(batches)),
                num_workers=self.num_workers,
                collate_fn=_as_it_is,
                pin_memory=self.pin_memory,
                generator=torch.Generator(),  # of its own: seeding workers must not move the model's dropout
            )
        )


class _MadeBatches(Dataset):
    """The batches of a part, by number."""

    def __init__(self, part: Any, batches: list[np.ndarray], collate: Callable[..., Batch], filler: int) -> None:
        self.part, self.batches, self.collate, self.filler = part, batches, collate, filler

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Batch:
        indices = self.batches[step]
        batch = self.collate(self._take(indices if indices.size else np.array([self.filler])))
        batch.indices = indices
        if not indices.size:
            batch.filler, batch.infos, batch.tokens = True, [], 0
            batch.label_counts = dict.fromkeys(batch.label_counts, 0)
        return batch

    def _take(self, indices: np.ndarray) -> list[Example]:
        if hasattr(self.part, "take"):
            return self.part.take(indices)
        return [self.part[index] for index in indices.tolist()]


def _as_it_is(batch: Batch) -> Batch:
    return batch
