"""Memory that is free inside the process, given back to the system."""

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Return free memory to the system where the C library does so on request (glibc); a millisecond or so.

    Tensors of ever other sizes, made and freed by several threads, leave gaps: over 200,000 texts they were 60 MiB.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows, which has no CDLL(None)
        return None
