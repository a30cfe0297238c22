"""CTranslate2 on CPU: its own conversion of the model; it takes lengths and leaves padding out by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.peers import Batch, Encode, Setup, absent, only_on, version_of
from benchmarks.peers.folder import saved

NAME = "CTranslate2"
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.int8: "int8"}


def version() -> str:
    return version_of("ctranslate2")


def missing(setup: Setup) -> str | None:
    reason = only_on(setup, "cpu", *_TYPES) or absent("ctranslate2", "transformers")
    if reason:
        return reason
    import ctranslate2

    can = ctranslate2.get_supported_compute_types("cpu")
    return None if _TYPES[setup.dtype] in can else f"CTranslate2 computes in {', '.join(sorted(can))} on this processor"


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    import ctranslate2

    target = setup.scratch / "ctranslate2"
    ctranslate2.converters.TransformersConverter(str(saved(model, setup.scratch))).convert(str(target), force=True)
    encoder = ctranslate2.Encoder(
        str(target), device="cpu", inter_threads=1, intra_threads=setup.threads, compute_type=_TYPES[setup.dtype]
    )

    def encode(batch: Batch) -> Any:
        ids = ctranslate2.StorageView.from_array(batch.input_ids.int().numpy())
        lengths = ctranslate2.StorageView.from_array(np.asarray(batch.lengths, dtype=np.int32))
        return np.asarray(encoder.forward_batch(ids, lengths).last_hidden_state)

    return encode
