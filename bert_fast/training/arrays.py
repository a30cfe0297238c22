"""Arrays as the C++ code takes them: contiguous, of one of its widths, and checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_fast import extension

_CHECKED = 1 << 20
Integers = Sequence[int] | np.ndarray  # and whatever else NumPy reads, such as a CPU tensor


def token_ids(name: str, given: Integers) -> np.ndarray:
    """``given`` as contiguous int32 or int64 ``[n]``: its own width, other integers as int64."""
    array = np.asarray(given)
    if array.dtype not in (np.int32, np.int64):
        array = integers(name, array)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not the shape {array.shape}")
    return np.ascontiguousarray(array)


def integers(name: str, given: Integers) -> np.ndarray:
    """``given`` as contiguous int64 ``[n]``."""
    array = np.asarray(given)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not the shape {array.shape}")
    return np.ascontiguousarray(array, dtype=np.int64)


def whole(name: str, value: int) -> None:
    """Raise a ValueError unless ``value`` is an integer, of Python or of NumPy."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, not {value!r}")


def rising(name: str, given: Integers, total: int, of: str, least: int = 0) -> np.ndarray:
    """Offsets as int64 ``[n + 1]`` that rise from 0 to ``total``, by ``least`` or more each."""
    offsets = integers(name, given)
    if not offsets.size or offsets[0] != 0 or offsets[-1] != total:
        found = f"{offsets[0]} .. {offsets[-1]}" if offsets.size else "nothing"
        raise ValueError(f"{name} must rise from 0 to the {total} {of}, not {found}")
    for first in range(0, offsets.size - 1, _CHECKED):  # part by part: they may be mapped from a file
        some = offsets[first : first + _CHECKED + 1]
        small = np.diff(some) < least
        if small.any():
            at = int(np.argmax(small))
            raise ValueError(f"{name} must rise by at least {least}, but has {some[at]} and then {some[at + 1]}")
    return offsets


def function(name: str, ids: np.ndarray) -> Any:
    """The extension's function for the width of ``ids``; None without an extension."""
    module = extension.module()
    return None if module is None else getattr(module, f"{name}_{ids.dtype.name}")
