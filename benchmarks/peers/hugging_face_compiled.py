"""transformers under torch.compile, on CPU with freezing: the weights as constants, laid out for oneDNN."""

from __future__ import annotations

import copy

import torch
from torch._inductor import config

from benchmarks.peers import Encode, Setup, no_int8, version_of
from benchmarks.peers.hugging_face import encoder

NAME = "transformers, torch.compile"


def version() -> str:
    return version_of("torch")


def missing(setup: Setup) -> str | None:
    return no_int8(setup)


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    # For the process: to set it back around every call would cost the peer time. What trains, it does not concern.
    config.freezing = config.freezing or setup.device.type == "cpu"
    # Dynamic sizes: batches of texts have all lengths, and one graph for each is minutes of compiling.
    return encoder(torch.compile(copy.deepcopy(model).to(setup.device).eval(), dynamic=True))
