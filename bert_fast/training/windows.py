"""Packing sequences into windows of a fixed number of tokens, with little left empty: best-fit decreasing."""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bert_fast import extension
from bert_fast.training.arrays import Integers, integers, whole

_MOST_TOKENS = 2**24  # as kMaxWindow in csrc/host/windows.h


@dataclass(frozen=True, eq=False)
class Windows:
    """Which sequences share a window.

    Attributes:
        order: int64 ``[n]``, the sequences window by window, each window's in the order they were placed.
        offsets: int64 ``[windows + 1]``: window w holds ``order[offsets[w]:offsets[w + 1]]``.
        utilization: the share of the windows' tokens that is taken; 1 where there is no window.
    """

    order: np.ndarray
    offsets: np.ndarray
    utilization: float

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, window: int) -> np.ndarray:
        """The sequences of a window, 0 .. len - 1: int64."""
        if not 0 <= window < len(self):
            raise IndexError(f"window {window} of {len(self)}")
        return self.order[self.offsets[window] : self.offsets[window + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[window] for window in range(len(self)))


def pack_windows(lengths: Integers, window: int) -> Windows:
    """Pack sequences into few windows by best-fit decreasing: at most 11/9 of the fewest possible, and four more.

    Longest first (equal lengths in their order), each sequence goes into the window with the least room that suffices
    (of several, the one used last), or into a new one. O(n log window).

    Args:
        lengths: ``[n]``, each sequence's tokens, 0 .. window.
        window: tokens that a window holds, 1 .. 2**24.

    Raises:
        ValueError: a length that no window holds, or a window outside its range.

    Source: Johnson, Demers, Ullman, Garey and Graham (1974), "Worst-case performance bounds for simple
    one-dimensional packing algorithms".
    """
    sizes = integers("lengths", lengths)
    whole("window", window)
    if not 1 <= window <= _MOST_TOKENS:
        raise ValueError(f"window must be in 1 .. 2**24, not {window}")
    wrong = (sizes < 0) | (sizes > window)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"lengths[{at}] must be in 0 .. {window}, the window, not {sizes[at]}: cut it first")
    module = extension.module()
    if module is None:
        order, offsets = _in_python(sizes, window)
    else:
        order, offsets = np.empty(sizes.size, dtype=np.int64), np.empty(sizes.size + 1, dtype=np.int64)
        pointers = (order.ctypes.data, offsets.ctypes.data)
        offsets = offsets[: module.pack_windows(sizes.ctypes.data, sizes.size, window, *pointers) + 1].copy()
    windows = len(offsets) - 1
    return Windows(order, offsets, float(sizes.sum()) / (windows * window) if windows else 1.0)


def _in_python(sizes: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    held: list[list[int]] = []
    stacks: dict[int, list[int]] = {}  # windows by the room that is left in them
    rooms: list[int] = []  # the keys of stacks, ascending
    all_sizes = sizes.tolist()
    for sequence in np.argsort(-sizes, kind="stable").tolist():
        length = all_sizes[sequence]
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            room, chosen = window, len(held)
            held.append([])
        else:
            room = rooms[at]
            chosen = stacks[room].pop()
            if not stacks[room]:
                del stacks[room], rooms[at]
        held[chosen].append(sequence)
        room -= length
        if room not in stacks:
            stacks[room] = []
            bisect.insort(rooms, room)
        stacks[room].append(chosen)
    order = [sequence for sequences in held for sequence in sequences]
    return np.array(order, dtype=np.int64), np.cumsum([0, *map(len, held)])
