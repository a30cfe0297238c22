"""Lengths of texts as they occur, and batches of random token ids of such lengths.

No data set is downloaded: a mix is a distribution with the mean, the spread and the limit of the real one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def lognormal_lengths(
    count: int, mean: float, spread: float, longest: int, *, shortest: int = 3, seed: int = 0
) -> list[int]:
    """``count`` lengths, lognormal about ``mean`` with ``spread`` (of the logarithm), cut to shortest .. longest."""
    normal = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    lengths = torch.exp(normal * spread) * mean / math.exp(spread**2 / 2)
    return lengths.round().clamp(min(shortest, longest), longest).int().tolist()


def squad_lengths(sequences: int, *, mean: float = 175.0, longest: int = 384, seed: int = 0) -> list[int]:
    """Lengths like those of SQuAD's questions with their paragraphs: the published histogram's shape."""
    return lognormal_lengths(sequences, mean, 0.4, longest, shortest=16, seed=seed)


def uniform_lengths(count: int, *, longest: int = 128, seed: int = 0) -> list[int]:
    """Every length from 1 to ``longest`` alike."""
    return torch.randint(1, longest + 1, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def padded_lengths(count: int, longest: int, padding: float, *, seed: int = 0) -> list[int]:
    """Lengths of one batch, of which a share ``padding`` of the places is padding: one sequence fills its row.

    The others lie about their mean, as far as it is from the nearer end.

    Raises:
        ValueError: so much padding cannot be had with so few sequences, or it is no share.
    """
    total = round((1 - padding) * count * longest)
    rest, others = total - longest, count - 1
    if not 0 <= padding < 1 or rest < others:
        raise ValueError(f"padding must be a share that {count} sequences of up to {longest} can have, not {padding}")
    if others == 0:
        return [longest]
    mean = rest / others
    half = min(mean - 1, longest - mean)
    steps = torch.linspace(-half, half, others) if others > 1 else torch.zeros(1)
    lengths = (mean + steps).round().int().tolist()
    for index in range(abs(rest - sum(lengths))):  # what rounding left over
        lengths[(others // 2 + index) % others] += 1 if sum(lengths) < rest else -1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    whole = [longest, *lengths]
    return [whole[i] for i in order]


MIXES: dict[str, Callable[[int], list[int]]] = {
    "uniform": lambda count: uniform_lengths(count),
    "squad": lambda count: squad_lengths(count),
    "queries": lambda count: lognormal_lengths(count, 12.0, 0.45, 64),
    "news": lambda count: lognormal_lengths(count, 60.0, 0.55, 256),
    "reviews": lambda count: lognormal_lengths(count, 200.0, 0.6, 512),
}
MEANS = {"uniform": 64.5, "squad": 175.0, "queries": 12.0, "news": 60.0, "reviews": 200.0}  # tokens a text


@dataclass(frozen=True)
class Batch:
    """Padded on the right: ``input_ids`` and ``attention_mask`` int64 ``[B, S]``, ``lengths`` of the B sequences."""

    input_ids: Tensor
    attention_mask: Tensor
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def padding(self) -> float:
        """Share of the places that hold no token."""
        return 1 - self.tokens / self.input_ids.numel()

    def sequences(self) -> list[list[int]]:
        """Token ids, sequence by sequence."""
        return [row[:n].tolist() for row, n in zip(self.input_ids, self.lengths, strict=True)]


def random_ids(lengths: Sequence[int], vocabulary: int, *, seed: int = 0) -> list[list[int]]:
    """Token ids for sequences of these lengths; never 0, which is padding."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randint(1, vocabulary, (sum(lengths),), generator=generator)
    return [row.tolist() for row in flat.split(list(lengths))]


def batches(ids: Sequence[Sequence[int]], size: int, *, by_length: bool = False) -> list[Batch]:
    """``ids`` in batches of ``size``, in the given order, or sorted by length, the longest first."""
    ordered = sorted(ids, key=len, reverse=True) if by_length else list(ids)
    return [collate(ordered[i : i + size]) for i in range(0, len(ordered), size)]


def collate(rows: Sequence[Sequence[int]]) -> Batch:
    """One batch."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    for row, given in zip(ids, rows, strict=True):
        row[: len(given)] = torch.as_tensor(given)
    lengths = tuple(map(len, rows))
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return Batch(ids, mask, lengths)
