"""Where to measure and how large: a GPU with the design's sizes, a CPU with smaller ones, or a tiny rehearsal."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch._functorch import config as functorch_config

import bert_fast
from benchmarks.options import Options
from benchmarks.timing import CpuClock, CudaClock, WallClock
from bert_fast import backend


@dataclass(frozen=True)
class Sizes:
    """Of the kernels' benchmarks: tokens when timed and when checked, BERT-base's widths, rows of the loss.

    ``optimizer`` holds hidden size, layers and vocabulary of the model whose weights an optimizer steps; ``roofs`` the
    elements of the copy, the width of the square product, and the rows of a layer's products.
    """

    tokens: int = 65536
    checked: int = 4096
    hidden: int = 768
    intermediate: int = 3072
    heads: int = 12
    vocabulary: int = 30522
    positions: int = 512
    loss_rows: int = 9830
    optimizer: tuple[int, int, int] = (1024, 24, 30522)
    roofs: tuple[int, int, int] = (2**29, 8192, 32768)

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


QUICK = Sizes(tokens=16384, loss_rows=2458)
ON_CPU = Sizes(
    tokens=2048, checked=512, loss_rows=256, optimizer=(384, 6, 30522), roofs=(2**24, 1024, 512)
)  # fmt: skip
TINY = Sizes(
    tokens=48, checked=48, hidden=32, intermediate=64, heads=2, vocabulary=97, positions=512, loss_rows=12,
    optimizer=(64, 2, 500), roofs=(2**16, 64, 16),
)  # fmt: skip


class Context:
    """One worker's device, dtype, sizes and clock."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.rehearse = options.rehearse
        self.small = options.rehearse or options.tiny
        if options.device not in ("cuda", "cpu"):
            raise ValueError(f'device must be "cuda" or "cpu", not {options.device!r}')
        self.on_gpu = options.device == "cuda" and not self.rehearse
        if self.on_gpu and not torch.cuda.is_available():
            raise RuntimeError(
                'no CUDA GPU is available here; device "cpu" measures on the CPU, a rehearsal runs everything small'
            )
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        # The interpreter's bfloat16 is wrong.
        self.dtype = torch.float32 if self.rehearse else getattr(torch, options.dtype)
        self.sizes = self._sizes(options)
        self.backend = "triton" if self.rehearse else "auto"
        self.clock: CpuClock | CudaClock | WallClock = (
            CpuClock() if self.rehearse else CudaClock() if self.on_gpu else WallClock()
        )

    def _sizes(self, options: Options) -> Sizes:
        if self.small:
            return TINY
        sizes = ON_CPU if not self.on_gpu else QUICK if options.quick else Sizes()
        return replace(sizes, tokens=options.tokens) if options.tokens else sizes

    def generator(self, seed: int) -> torch.Generator:
        """A fresh generator on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Within it bert_fast runs as it does for a user; in a rehearsal, its kernels in Triton's interpreter.

        Raises:
            BackendError: a kernel that was needed has failed to compile: what would be measured is PyTorch.
        """
        decided, failed = backend.decisions(), backend.failures()
        with bert_fast.use_backend(self.backend):
            yield
        if self.backend == "reference":
            return
        now = backend.decisions()
        for op, why in backend.failures().items():
            if op not in failed or now[op] is not decided.get(op):
                raise bert_fast.BackendError(f"{op} was measured on PyTorch's ops: {why}")

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Within it, what :meth:`ours` runs is the backend ``name``."""
        before, self.backend = self.backend, name
        try:
            yield
        finally:
            self.backend = before

    def with_hidden(self, hidden: int) -> Context:
        """The same context for a model of another width."""
        other = copy.copy(self)
        other.sizes = replace(self.sizes, hidden=hidden, intermediate=4 * hidden, heads=hidden // 64)
        return other

    def compiled(self, function: Callable) -> Callable:
        """``torch.compile(function)``; where all is small without code generation, which needs a compiler and time."""
        functorch_config.donated_buffer = False  # a backward that is timed runs many times over one forward
        return torch.compile(function, backend="aot_eager" if self.small else "inductor", dynamic=False)

    def forget_compiled(self) -> None:
        """So that no item meets the recompile limit on account of those before it."""
        torch.compiler.reset()

    def peak_memory(self, run: Callable[[], object]) -> int | None:
        """Bytes that ``run`` holds at most beyond what was there before; None on the CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


@functools.cache
def context(options: Options) -> Context:
    """The context of these options; one for all items of a worker, so that the clock's buffers are made once."""
    return Context(options)
