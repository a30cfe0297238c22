"""How a kernel becomes an op of PyTorch: schema, implementation, fake, and a gradient at the Autograd key."""

import functools
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from bert_fast import backend

LIBRARY = torch.library.Library("bert_fast", "FRAGMENT")
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def define(
    schema: str,
    implementation: Callable,
    fake: Callable,
    gradient: type[torch.autograd.Function] | None = None,
    *,
    instead: Callable | None = None,
    of: str | None = None,
) -> Callable:
    """Register ``bert_fast::<name>`` and return it as a callable.

    Args:
        schema: ``name(Tensor x, ...) -> ...`` in PyTorch's own notation.
        implementation: the launcher, for CUDA tensors, and for CPU tensors under Triton's interpreter.
        fake: the outputs' shapes, dtypes and devices, for tracing.
        gradient: an ``autograd.Function``; its forward calls the op below autograd by :func:`below_autograd`.
        instead: of a Triton kernel's launcher, what runs once the kernel has failed to compile (see ``stand_ins``).
        of: the name under which ``backend`` gives it up; the op's own by default.
    """
    name = schema.partition("(")[0]
    implementation = _untraced(implementation if instead is None else _recovering(of or name, implementation, instead))
    LIBRARY.define(schema)
    LIBRARY.impl(name, implementation, "CUDA")
    LIBRARY.impl(name, implementation, "CPU")
    torch.library.register_fake(f"bert_fast::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.bert_fast, name).default
    if gradient is not None:
        LIBRARY.impl(name, lambda *args: gradient.apply(*args), "Autograd", with_keyset=False)
    return op


def _recovering(op: str, launch: Callable, instead: Callable) -> Callable:
    """``launch``, until a kernel of ``op`` does not compile; from then on ``instead``, whose dtypes are its own."""

    @functools.wraps(launch)
    def run(first: Tensor, *others: Any) -> Any:
        if not backend.given_up(op):
            try:
                return launch(first, *others)
            except Exception as error:
                if not failed_to_compile(error):
                    raise
                backend.give_up(op, error)
        with torch.autocast(first.device.type, enabled=False):
            return instead(first, *others)

    return run


def _untraced(implementation: Callable) -> Callable:
    """What runs when a compiled graph ends at the op, as it may without ``fullgraph``: code, not to be traced again."""
    apart = torch._disable_dynamo(implementation)

    @functools.wraps(implementation)
    def run(*args: Any) -> Any:
        return apart(*args) if torch.compiler.is_compiling() else implementation(*args)

    return run


def below_autograd(op: Callable, *args: Any) -> Any:
    """Call ``op`` as its gradient's forward must: without coming back to the gradient."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def traced() -> bool:
    """Whether PyTorch's ops are recorded or transformed now: compiled, exported, in torch.func or a dispatch mode."""
    return bool(
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def plain_tensors(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors, no DTensor and no other subclass."""
    return all(type(x) in (torch.nn.Parameter, Tensor) for x in tensors)


def valueless(x: Tensor) -> bool:
    """Whether there is a shape but nothing to look at: on the meta device, or fake, while shapes are worked out."""
    return x.is_meta or isinstance(x, FakeTensor)


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph records what runs on ``device`` now: nothing may wait for it."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def addressable(*tensors: Tensor) -> bool:
    """Whether compiled code may be handed the tensors' memory: it is theirs, and nothing is being traced.

    A tensor inside torch.func, a fake one and most subclasses have no memory of their own, and what a tracer records
    are PyTorch's ops. Where a tensor is lazily negated, or opaque, the memory does not hold its elements.
    """
    held = plain_tensors(*tensors) and not any(x.is_neg() or x.layout != torch.strided for x in tensors)
    return held and not traced()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast runs products in on ``device`` now; None without autocast, and where there is none."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def dtype_reasons(**tensors: Tensor | None) -> list[str]:
    """What speaks against a kernel in the tensors' dtypes."""
    return [
        f"{name} is {x.dtype}, not float32, float16 or bfloat16"
        for name, x in tensors.items()
        if x is not None and x.dtype not in KERNEL_DTYPES
    ]


def launch_on(tensor: Tensor) -> tuple[int, int]:
    """The index of the tensor's GPU and the address of its current stream, as the extension's CUDA functions end."""
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def failed_to_compile(error: Exception) -> bool:
    """Whether Triton says so: a kernel does not compile, does not fit the GPU, or cannot be built or kept on disk."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    if isinstance(error, (CompilationError, OutOfResources, PTXASError, subprocess.CalledProcessError, OSError)):
        return True
    return isinstance(error, RuntimeError) and "PassManager::run failed" in str(error)  # the compiler's own passes
