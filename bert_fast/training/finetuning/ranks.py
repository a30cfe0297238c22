"""Rows shared out among processes, and what these tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One of several processes that work on the same rows; by default the only one.

    Attributes:
        rank: this one's number, 0 .. count - 1.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_group(cls) -> Ranks:
        """As ``torch.distributed`` has it; alone where no process group is initialised."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @classmethod
    def for_rows(cls, rows: Any, shared: bool) -> Ranks:
        """:meth:`of_group` where rows are ``shared``, else alone.

        Raises:
            ValueError: several processes cannot read the same standard input ("-").
        """
        ranks = cls.of_group() if shared else cls()
        if ranks.count > 1 and any(isinstance(one, str) and one == "-" for one in _listed(rows)):
            raise ValueError(f"{ranks.count} processes cannot share standard input: give a file, or start one process")
        return ranks

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks for all."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items: of every ``count`` neighbours one, so that rows sorted by length are dealt evenly."""
        return items[self.rank :: self.count]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in order, in every process. Collective."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def of_the_first(self, value: T) -> T:
        """The first process's value. Collective."""
        if self.count == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held)
        return held[0]


def _listed(rows: Any) -> Sequence[Any]:
    return rows if isinstance(rows, (list, tuple)) else [rows]


def dealt(shares: Sequence[Sequence[T]]) -> list[T]:
    """What :meth:`Ranks.share` dealt out, put together again in its order."""
    whole: list[Any] = [None] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole


@contextmanager
def started_ranks() -> Iterator[Ranks]:
    """The processes that torchrun started, for as long as the block lasts; alone where it started none.

    They exchange Python objects only, which gloo does on any machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield Ranks.of_group()
        return
    distributed.init_process_group("gloo")
    try:
        yield Ranks.of_group()
    finally:
        distributed.destroy_process_group()
