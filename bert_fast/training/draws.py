"""Random draws as a function of seed, pass and index alone: csrc/host/random.h in NumPy, word for word.

Whatever the number of workers, the batches and the platform, a sequence gets the same draws. Philox4x32-10 (Salmon et
al., 2011): key = seed; counter = (block, pass, the index's low word, its high word with the purpose as the top byte).
"""

from enum import IntEnum

import numpy as np

MAX_INDEX = 2**56 - 1
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Purpose(IntEnum):
    """What a draw decides; no two share words, nor do they with dropout, whose counters end in 0."""

    SELECT = 1
    SHUFFLE = 2
    REPLACE = 3
    PAIR = 4


def philox(counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: int) -> np.ndarray:
    """Words of Philox4x32-10: four uint64 arrays ``[n]`` of 32-bit values -> uint64 ``[n, 4]`` of 32-bit values."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c2 = (second >> _HALF) ^ c1 ^ np.uint64(k0), (first >> _HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = second & _LOW, first & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def words(seed: int, epoch: int, purpose: Purpose, index: np.ndarray, block: np.ndarray) -> np.ndarray:
    """The four words of each (index, block): int64 ``[n]``, int64 ``[n]`` -> uint64 ``[n, 4]``."""
    wide = index.astype(np.uint64)
    high = (wide >> _HALF) | np.uint64(purpose << 24)
    return philox((block.astype(np.uint64), np.full_like(wide, epoch), wide & _LOW, high), seed)


def threshold(p: float) -> int:
    """The number that a word is below with probability p, of 2**32."""
    return round(p * 2**32)


def scaled_below(high: np.ndarray, low: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Two words as one number of 64 bits, scaled to int64 0 .. n - 1; n < 2**32."""
    n = np.asarray(n, dtype=np.uint64)
    return ((high * n + (low * n >> _HALF)) >> _HALF).astype(np.int64)


class Draws:
    """The draws of one sequence or document in turn, two words each."""

    def __init__(self, seed: int, epoch: int, purpose: Purpose, index: int) -> None:
        self._source = (seed, epoch, purpose, np.array([index]))
        self._words: list[list[int]] = []
        self._count = 0

    def below(self, n: int) -> int:
        """0 .. n - 1."""
        high, low = self._next()
        return (high << 32 | low) * n >> 64

    def chance(self, limit: int) -> bool:
        """True with probability p, for ``limit = threshold(p)``."""
        return self._next()[0] < limit

    def _next(self) -> list[int]:
        if self._count == len(self._words):
            blocks = np.arange(self._count // 2, self._count + 16)  # more at a time the more were drawn
            seed, epoch, purpose, index = self._source
            self._words += words(seed, epoch, purpose, np.repeat(index, len(blocks)), blocks).reshape(-1, 2).tolist()
        self._count += 1
        return self._words[self._count - 1]


def permutation(n: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """0 .. n - 1 in random order, int64 ``[n]``: another for every ``stream``, 0 .. 2**32 - 1.

    Raw words of a counter-based generator, sorted: NumPy promises those, but not the steps of its own shuffle.
    """
    key = np.array([seed, epoch << 32 | stream], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")


def check_seed(seed: int, epoch: int = 0) -> None:
    """Raises ValueError unless both fit the words that they take."""
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name} must be an integer, not {value!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in 0 .. 2**64 - 1, not {seed}")
    if not 0 <= epoch < 2**32:
        raise ValueError(f"epoch must be in 0 .. 2**32 - 1, not {epoch}")
