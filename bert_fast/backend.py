"""Which implementation of an op can run here and why not: the one place where a backend is chosen.

Every op has PyTorch's ops ("reference", which always run) and at most one kernel for GPUs: Triton ("triton", tiles) or
the C++/CUDA extension ("cuda", gathers and scans). A kernel is rejected by a list of reasons, kept for ``explain``. On
CPU some ops have C++ of the extension, which runs unless "reference" is asked for.
"""

import functools
import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from bert_fast import extension, notices

BACKENDS = ("auto", "triton", "cuda", "reference")
MINIMUM_CAPABILITY = (8, 0)

_request = threading.local()
_decisions: dict[str, tuple[str, dict[str, list[str]]]] = {}
_broken: dict[str, str] = {}


def constant_while_compiling(function: Callable) -> Callable:
    """As ``torch.compiler.assume_constant_result``, which would at once import all of torch._dynamo, and Triton."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run; the message holds every reason."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, in this thread, run every op that has backend ``name`` on it; other ops choose for themselves.

    Args:
        name: "auto" (the default: the kernel where it can run), "triton", "cuda" or "reference".

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


# While compiling, the choice is made once, when the graph is traced.
@constant_while_compiling
def runs(op: str, kernel: str, device: torch.device, against: tuple[str, ...] = ()) -> bool:
    """Whether ``op`` runs on its ``kernel`` now; if not, PyTorch's ops do it.

    Args:
        op: the op's name, for messages and for ``decisions``.
        kernel: the backend of the op's kernel, "triton" or "cuda".
        device: where the tensors are.
        against: what speaks against the kernel in these very tensors.

    Raises:
        BackendError: this kernel was asked for by name and cannot run.
    """
    wanted = requested()
    reasons = [*reasons_against(kernel, device), *against]
    if op in _broken:
        reasons.append(_broken[op])
    if wanted == kernel and reasons:
        raise BackendError(f"{op} cannot run on backend {kernel!r}: " + "; ".join(reasons))
    chosen = "reference" if reasons or wanted == "reference" else kernel
    _decide(op, chosen, {kernel: reasons} if reasons else {})
    return chosen == kernel


@constant_while_compiling
def has_kernels(device: torch.device) -> bool:
    """Whether Triton kernels run on ``device`` now, in general: what decides how layers hand their work to ops."""
    return requested() != "reference" and not reasons_against("triton", device)


def given_up(op: str) -> bool:
    """Whether a kernel of ``op`` has failed to compile."""
    return op in _broken


def failures() -> dict[str, str]:
    """Per op whose kernel has failed to compile, what was said of it."""
    return dict(_broken)


def give_up(op: str, error: Exception) -> None:
    """Never try the kernel of ``op`` again in this process, and say once why: it failed to compile.

    Raises:
        BackendError: the kernel was asked for by name.
    """
    _broken[op] = f"its kernel failed to compile: {type(error).__name__}: {error}"
    if requested() not in ("auto", "reference"):
        raise BackendError(f"{op} cannot run on backend {requested()!r}: {_broken[op]}") from error
    notices.warn(f"{op} runs on PyTorch's ops: {_broken[op]}")


def note(op: str, chosen: str, kernel: str, reasons: list[str]) -> None:
    """Keep for ``decisions`` what an op with host code chose, and what speaks against that code."""
    _, others = _decisions.get(op, ("", {}))
    _decide(op, chosen, {**others, kernel: reasons} if reasons else others)


def _decide(op: str, chosen: str, others: dict[str, list[str]]) -> None:
    _decisions[op] = (chosen, others)
    listener = getattr(_request, "listener", None)
    if listener is not None:
        listener(op, chosen, others)


@contextmanager
def listening(listener: Callable[[str, str, dict[str, list[str]]], None]) -> Iterator[None]:
    """Within the block, in this thread, ``listener(op, chosen, reasons)`` is called with every decision."""
    _request.listener = listener
    try:
        yield
    finally:
        _request.listener = None


def listened() -> bool:
    """Whether somebody listens to this thread's decisions: what saves calls of modules should make them all then."""
    return getattr(_request, "listener", None) is not None


def decisions() -> dict[str, tuple[str, dict[str, list[str]]]]:
    """Per op, the backend that its last call ran on, and the reasons against its kernels.

    Besides those of ``use_backend`` it may be "extension": C++ code on the CPU.
    """
    return dict(_decisions)


def reasons_against(kernel: str, device: torch.device) -> tuple[str, ...]:
    """Why no kernel of this kind can run on ``device``; empty when it can."""
    if kernel == "cuda":
        return cuda_reasons(device)
    if device.type == "cpu" and requested() != "triton":
        return ("the tensors are on the CPU; Triton's interpreter runs only when asked for by name",)
    return triton_reasons(device)


@functools.cache
def triton_reasons(device: torch.device) -> tuple[str, ...]:
    """Why no Triton kernel can run on ``device``; empty when they can."""
    if importlib.util.find_spec("triton") is None:
        return ("Triton is not installed (it comes with CUDA builds of PyTorch; pip install triton)",)
    if device.type == "cpu" and _interpreting():
        return ()
    if device.type != "cuda":
        return (f"the tensors are on {device.type}; Triton kernels need an NVIDIA GPU",)
    if not torch.cuda.is_available():
        return ("PyTorch finds no GPU here",)
    if torch.version.hip is not None:
        return ("this is a ROCm build of PyTorch; the kernels are written for NVIDIA GPUs",)
    capability = torch.cuda.get_device_capability(device)
    if capability < MINIMUM_CAPABILITY:
        return (f"the GPU's compute capability {capability[0]}.{capability[1]} is below 8.0",)
    return _starting_reasons()


def _starting_reasons() -> tuple[str, ...]:
    """Why Triton, which builds its launcher on first use, cannot do so here; empty when it can."""
    import triton

    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # what may be missing is a C compiler, Python's headers or a directory to write in
        return (f"Triton cannot start: {type(error).__name__}: {error}",)
    return ()


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
    # With the index also: has the build code for this very GPU? Without such code the first launch would fail.
    status = module.cuda_status(-1 if device.index is None else device.index)
    return () if status is None else (status,)


def _interpreting() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)
