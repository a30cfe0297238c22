"""transformers under torch.compile, on CPU with freezing: the weights as constants, laid out for oneDNN."""

from __future__ import annotations

import copy

import torch
from torch._inductor import config

from benchmarks.peers import Batch, Encode, Setup, version_of
from benchmarks.peers.hugging_face import encoder

NAME = "transformers, torch.compile"


def version() -> str:
    return version_of("torch")


def missing(setup: Setup) -> str | None:
    return None


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    # Dynamic sizes: batches of texts have all lengths, and one graph for each is minutes of compiling.
    module = torch.compile(copy.deepcopy(model).to(setup.device, setup.dtype).eval(), dynamic=True)
    compiled = encoder(module)

    def encode(batch: Batch) -> torch.Tensor:
        with config.patch(freezing=setup.device.type == "cpu"):
            return compiled(batch)

    return encode
