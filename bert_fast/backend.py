"""Which implementation of an op can run here and why not: the one place where a backend is chosen.

Each op lists its backends in order of preference with the reasons against each (an empty list: it can run). Backends
are "triton" (tiles), "cuda" (the C++/CUDA extension) and "reference" (PyTorch ops, which always run).
"""

import functools
import importlib.util
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from bert_fast import extension

BACKENDS = ("auto", "triton", "cuda", "reference")
MINIMUM_CAPABILITY = (8, 0)

_request = threading.local()
_decisions: dict[str, tuple[str, dict[str, list[str]]]] = {}


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run; the message holds every reason."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, in this thread, run every op that has backend ``name`` on it; other ops choose for themselves.

    Args:
        name: "auto" (the default: the first that can run), "triton", "cuda" or "reference".

    Raises:
        ValueError: no such backend.
        BackendError: (when an op runs) the backend cannot run that op; the message names every reason.
    """
    if name not in BACKENDS:
        raise ValueError(f"name must be one of {BACKENDS}, not {name!r}")
    previous = requested()
    _request.name = name
    try:
        yield
    finally:
        _request.name = previous


def requested() -> str:
    """The backend asked for in this thread."""
    return getattr(_request, "name", "auto")


def choose(op: str, options: Mapping[str, Sequence[str]]) -> str:
    """The backend that runs ``op``: the one asked for, or the first in ``options`` with no reason against it.

    Args:
        op: the op's name, for messages and for ``describe``.
        options: backend -> reasons against it, best first; "reference" needs no entry.

    Raises:
        BackendError: the backend asked for is one of the op's and cannot run.
    """
    wanted = requested()
    if wanted in options:
        if options[wanted]:
            raise BackendError(f"{op} cannot run on backend {wanted!r}: " + "; ".join(options[wanted]))
        chosen = wanted
    elif wanted == "reference":
        chosen = wanted
    else:
        chosen = next((name for name, reasons in options.items() if not reasons), "reference")
    if not torch.compiler.is_compiling():
        _decisions[op] = (chosen, {name: list(reasons) for name, reasons in options.items() if reasons})
    return chosen


def decisions() -> dict[str, tuple[str, dict[str, list[str]]]]:
    """Per op, the backend that its last call ran on and the reasons against the others."""
    return dict(_decisions)


@torch.compiler.assume_constant_result
@functools.cache
def triton_reasons(device: torch.device) -> tuple[str, ...]:
    """Why no Triton kernel can run on ``device``; empty when they can."""
    if importlib.util.find_spec("triton") is None:
        return ("Triton is not installed (it comes with CUDA builds of PyTorch; pip install triton)",)
    if device.type == "cpu" and _interpreting():
        return ()
    if device.type != "cuda":
        return (f"the tensors are on {device.type}; Triton kernels need an NVIDIA GPU",)
    if torch.version.hip is not None:
        return ("this is a ROCm build of PyTorch; the kernels are written for NVIDIA GPUs",)
    capability = torch.cuda.get_device_capability(device)
    if capability < MINIMUM_CAPABILITY:
        return (f"the GPU's compute capability {capability[0]}.{capability[1]} is below 8.0",)
    return ()


@torch.compiler.assume_constant_result
@functools.cache
def cuda_reasons(device: torch.device) -> tuple[str, ...]:
    """Why no CUDA kernel of the extension can run on ``device``; empty when they can."""
    if device.type != "cuda":
        return (f"the tensors are on {device.type}",)
    module = extension.module()
    if module is None:
        return (extension.unavailable_reason() or "the extension is not available",)
    if not hasattr(module, "cuda_status"):
        return ("the extension was built without CUDA (no nvcc was found)",)
    status = module.cuda_status()
    return () if status is None else (status,)


def _interpreting() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)
