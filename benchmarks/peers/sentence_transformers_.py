"""sentence-transformers: its modules over token ids, pooling included; its own sorting is the column "sorted"."""

from __future__ import annotations

import torch

from benchmarks.peers import Batch, Encode, Setup, absent, no_int8, version_of
from benchmarks.peers.folder import saved

NAME = "sentence-transformers"


def version() -> str:
    return version_of("sentence-transformers")


def missing(setup: Setup) -> str | None:
    return no_int8(setup) or absent("sentence_transformers")


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    from sentence_transformers import SentenceTransformer

    module = SentenceTransformer(str(saved(model, setup.scratch)), device=str(setup.device))  # and mean pooling
    module = module.to(setup.dtype).eval()

    def encode(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            out = module({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})
        return out["token_embeddings"]

    return encode
