"""Which examples make which batch: a pure function of lengths, seed, epoch, rank and number of ranks."""

from __future__ import annotations

import hashlib
from dataclasses import KW_ONLY, dataclass, fields, replace

import numpy as np

from bert_fast.packing import token_budget_batches
from bert_fast.training import draws
from bert_fast.training.arrays import Integers, integers, whole

_BUCKET = 50  # batches that are sorted together: few enough to stay random, enough that lengths in a batch are alike
_EXAMPLES, _BATCHES = 0, 1
_UNBOUNDED = 2**62


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """How examples are dealt out to batches, and a batch to ranks.

    A batch is what one step of all ranks together sees. It is the same for any number of ranks: each gets its share of
    every batch, so all make the same number of steps, a run goes on with another number of processes where it was, and
    to resume is to skip the batches that are done. A share is balanced in sequences (they differ by one at most) and
    nearly so in tokens: longest first, the batch is dealt to the ranks there and back. Where a batch has fewer examples
    than there are ranks, some get an empty share (from a :class:`PackedLoader`: a filler that counts nothing). No
    example is ever counted twice.

    Args:
        lengths: ``[n]``, tokens of each example.
        batch_size: examples of a batch, over all ranks; the last one may have fewer.
        max_tokens: the most tokens of a batch, over all ranks; a longer example is a batch of its own. With
            ``batch_size`` both hold.
        shuffle: a new order in every epoch.
        group_by_length: batches of similar lengths. With ``shuffle``, the shuffled examples are cut into buckets of
            about 50 batches, each is sorted and cut, and the batches are shuffled; without, the longest come first.
        seed: 0 .. 2**64 - 1.
        drop_last: leave out a last batch of fewer than ``batch_size``. Not with ``max_tokens``.

    Raises:
        ValueError: an argument outside what is said above.
    """

    lengths: np.ndarray
    _: KW_ONLY
    batch_size: int | None = None
    max_tokens: int | None = None
    shuffle: bool = False
    group_by_length: bool = False
    seed: int = 0
    drop_last: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", integers("lengths", self.lengths))
        if self.lengths.size and self.lengths.min() < 0:
            raise ValueError(f"lengths must be at least 0, not {self.lengths.min()}")
        draws.check_seed(self.seed)
        if self.batch_size is None and self.max_tokens is None:
            raise ValueError("give batch_size, max_tokens or both")
        for name in ("batch_size", "max_tokens"):
            value = getattr(self, name)
            if value is None:
                continue
            whole(name, value)
            if not 1 <= value < _UNBOUNDED:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.drop_last and self.max_tokens is not None:
            raise ValueError("drop_last needs batches of batch_size examples; with max_tokens none is the odd one out")

    def with_lengths(self, lengths: Integers) -> BatchPlan:
        """The same plan for other examples."""
        return replace(self, lengths=np.asarray(lengths))

    @property
    def identity(self) -> str:
        """A short text that is another for other lengths or options."""
        digest = hashlib.blake2b(self.lengths.tobytes(), digest_size=8)
        digest.update(" ".join(str(getattr(self, field.name)) for field in fields(self)[1:]).encode())
        return digest.hexdigest()

    def batches(self, epoch: int = 0, rank: int = 0, world_size: int = 1, *, part: int = 0) -> list[np.ndarray]:
        """This rank's share of each batch of an epoch.

        Args:
            epoch: 0 .. 2**32 - 1.
            rank: 0 .. world_size - 1.
            world_size: how many ranks share a batch.
            part: of data that comes part by part, which one these lengths are of: 0 .. 2**24 - 1.

        Returns:
            one int64 array of example numbers per batch, as many for every rank; the shares of all ranks are the batch.
            An array may be empty where ``world_size`` is above 1.

        Raises:
            ValueError: an argument outside what is said above.
        """
        draws.check_seed(self.seed, epoch)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0 .. world_size - 1 = {world_size - 1}, not {rank}")
        if not 0 <= part < 2**24:
            raise ValueError(f"part must be in 0 .. 2**24 - 1, not {part}")
        batches = self._of_all_ranks(epoch, part)
        return batches if world_size == 1 else self._share(batches, rank, world_size)

    def _of_all_ranks(self, epoch: int, part: int) -> list[np.ndarray]:
        n = self.lengths.size
        order = self._permutation(n, epoch, part, _EXAMPLES) if self.shuffle else np.arange(n)
        if not self.group_by_length:
            batches = self._cut(order)
        else:
            size = self._bucket_size() if self.shuffle else max(n, 1)
            batches = [
                bucket[batch]
                for bucket in (order[start : start + size] for start in range(0, n, size))
                for batch in token_budget_batches(
                    self.lengths[bucket], self.max_tokens or _UNBOUNDED, self.batch_size or 0
                )
            ]
        odd = bool(batches) and self.max_tokens is None and len(batches[-1]) < (self.batch_size or 0)
        last = [batches.pop()] if odd else []
        if self.shuffle and self.group_by_length:
            batches = [batches[k] for k in self._permutation(len(batches), epoch, part, _BATCHES)]
        return batches if self.drop_last else batches + last

    def _permutation(self, n: int, epoch: int, part: int, purpose: int) -> np.ndarray:
        return draws.permutation(n, self.seed, epoch, part << 8 | purpose)

    def _bucket_size(self) -> int:
        sizes = [] if self.batch_size is None else [self.batch_size * _BUCKET]
        if self.max_tokens is not None:
            sizes.append(self.max_tokens * _BUCKET * self.lengths.size // max(int(self.lengths.sum()), 1))
        return max(min(sizes), 1)

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        """Batches in the given order."""
        size = self.batch_size or order.size
        if self.max_tokens is None:
            return np.split(order, range(size, order.size, size)) if order.size else []
        ends = np.cumsum(self.lengths[order])
        cuts, first, before = [], 0, 0
        while first < order.size:
            fitting = int(np.searchsorted(ends, before + self.max_tokens, side="right"))
            last = min(max(fitting, first + 1), first + size)
            cuts.append(order[first:last])
            first, before = last, int(ends[last - 1])
        return cuts

    def _share(self, batches: list[np.ndarray], rank: int, world_size: int) -> list[np.ndarray]:
        sizes = np.array([len(batch) for batch in batches], dtype=np.int64)
        flat = np.concatenate(batches) if batches else np.empty(0, dtype=np.int64)
        batch_of = np.repeat(np.arange(sizes.size), sizes)
        by_length = np.lexsort((-self.lengths[flat], batch_of))
        turn = (np.arange(flat.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)) % (2 * world_size)
        owner = np.empty(flat.size, dtype=np.int64)
        owner[by_length] = np.minimum(turn, 2 * world_size - 1 - turn)
        mine = owner == rank
        shares = np.bincount(batch_of[mine], minlength=sizes.size)
        return np.split(flat[mine], np.cumsum(shares)[:-1]) if batches else []
