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


def offsets(name: str, given: Integers, total: int, of: str) -> np.ndarray:
    """``given`` as contiguous int64 ``[n + 1]`` from 0 to ``total``; what is between is not looked at."""
    array = integers(name, given)
    if not array.size or array[0] != 0 or array[-1] != total:
        found = f"{array[0]} .. {array[-1]}" if array.size else "nothing"
        raise ValueError(f"{name} must rise from 0 to the {total} {of}, not {found}")
    return array


def rising(name: str, given: Integers, total: int, of: str, least: int = 0) -> np.ndarray:
    """Offsets as int64 ``[n + 1]`` that rise from 0 to ``total``, by ``least`` or more each."""
    array = offsets(name, given, total, of)
    for first in range(0, array.size - 1, _CHECKED):  # part by part: they may be mapped from a file
        some = array[first : first + _CHECKED + 1]
        small = np.diff(some) < least
        if small.any():
            at = int(np.argmax(small))
            raise ValueError(f"{name} must rise by at least {least}, but has {some[at]} and then {some[at + 1]}")
    return array


def function(name: str, ids: np.ndarray) -> Any:
    """The extension's function for the width of ``ids``; None without an extension."""
    module = extension.module()
    return None if module is None else getattr(module, f"{name}_int{8 * ids.itemsize}")
