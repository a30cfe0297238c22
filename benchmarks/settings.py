"""What a run of the suite measures: one object for all sections, as the command line or pytest fill it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers
from benchmarks.context import Context
from benchmarks.options import Options
from benchmarks.shapes import SHAPES
from benchmarks.timing import Timing
from benchmarks.workloads import Batch


@dataclass(frozen=True)
class Settings:
    """Choices of one run.

    Attributes:
        device: "cpu" or "cuda".
        dtype: "float32", "bfloat16" or "float16"; "int8" for encoders on a CPU, whose weights are float32 then.
        model: a name of :data:`benchmarks.shapes.SHAPES` (random weights), or a folder with a checkpoint.
        threads: of the CPU, for every peer.
        seconds: about how long one comparison of several contenders may take, their preparation left out.
        sequences: of a mix of lengths; 0 for what suits the model and device.
        batch_size: sequences a batch.
        texts: a file of texts, one a line, tokenized by the model's tokenizer, as a mix of its own; needs a folder.
        only: names of ops, mixes or the like: those rows alone.
        peers: names of :data:`benchmarks.peers.NAMES`.
        compile: whether torch.compile is among the kernels' peers.
        bound_ms: the latency that the server scenario must hold in 99 of 100 queries.
        tiny: everything small, for a look at the suite and not at the machine.
    """

    device: str = "cpu"
    dtype: str = "float32"
    model: str = "minilm"
    threads: int = 2
    seconds: float = 15.0
    sequences: int = 0
    batch_size: int = 32
    texts: Path | None = None
    only: tuple[str, ...] = ()
    peers: tuple[str, ...] = peers.NAMES
    compile: bool = True
    bound_ms: float = 130.0
    tokens: int = 0
    tiny: bool = False

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        found = asdict(self)
        return found | {"texts": None if self.texts is None else self.texts.name, "model": self.model_name}

    @property
    def model_name(self) -> str:
        """Without the folder's place on this machine."""
        return "tiny" if self.tiny else self.model if self.model in SHAPES else Path(self.model).name

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "int8" else getattr(torch, self.dtype)

    @functools.cached_property
    def context(self) -> Context:
        """Device, sizes of the kernels' inputs, and the clock."""
        dtype = str(self.torch_dtype).removeprefix("torch.")
        return Context(Options(dtype=dtype, device=self.device, tokens=self.tokens, tiny=self.tiny))

    @functools.cached_property
    def _folder(self) -> tempfile.TemporaryDirectory:
        return tempfile.TemporaryDirectory(prefix="bert_fast_bench_")

    def setup(self) -> peers.Setup:
        """As peers are prepared for one model: the folder for their files is a new one, gone with the settings."""
        scratch = Path(tempfile.mkdtemp(dir=self._folder.name))
        dtype = torch.int8 if self.dtype == "int8" else self.torch_dtype
        return peers.Setup(dtype, self.threads, self.context.device, scratch)

    def wanted(self, name: str) -> bool:
        """Whether ``only`` lets it through."""
        return not self.only or any(part in name for part in self.only)

    def to_device(self, batch: Batch) -> Batch:
        """The batch where the models are."""
        device = self.context.device
        return Batch(batch.input_ids.to(device), batch.attention_mask.to(device), batch.lengths)

    def compete(self, contenders: dict[str, Callable[[], object]]) -> dict[str, Timing]:
        """Time whole passes: on CPU in turn, on a GPU one after the other, a loop each."""
        clock = self.context.clock
        if clock.interleaves:
            runs: dict[str, Sequence[Callable[[], object]]] = {name: [run] for name, run in contenders.items()}
            return clock.race(runs, self.seconds, warmup=1, at_least=3)
        share = self.seconds / max(1, len(contenders))
        return {name: clock.steady(run, share) for name, run in contenders.items()}
