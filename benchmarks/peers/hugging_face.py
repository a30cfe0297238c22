"""transformers with PyTorch's scaled dot-product attention, its default."""

from __future__ import annotations

import copy

import torch

from benchmarks.peers import Batch, Encode, Setup, no_int8, version_of

NAME = "transformers"


def version() -> str:
    return version_of("transformers")


def missing(setup: Setup) -> str | None:
    return no_int8(setup)


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    return encoder(copy.deepcopy(model).to(setup.device).eval())


def encoder(module: torch.nn.Module) -> Encode:
    """A call of ``module`` that takes a batch."""

    def encode(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state

    return encode
