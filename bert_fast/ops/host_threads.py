"""PyTorch's own threads, for the extension's code on the CPU."""

import ctypes
import functools

import torch


def host_threads() -> tuple[int, int]:
    """How many threads the extension's code is to run in, and the address of what runs it in them; 0 for one thread."""
    threads = torch.get_num_threads()
    return threads, _parallel() if threads > 1 else 0


def host_threads_reason() -> str | None:
    """Why the extension's code cannot run in as many threads as PyTorch's; None if it can."""
    threads, parallel = host_threads()
    return "PyTorch's OpenMP runtime offers no GOMP_parallel" if threads > 1 and not parallel else None


@functools.cache
def _parallel() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that PyTorch has loaded; 0 if there is none to be found."""
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # not there; no such runtime; Windows, which has no CDLL(None)
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
