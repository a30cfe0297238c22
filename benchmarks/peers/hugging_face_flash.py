"""transformers with flash-attn, which leaves padding out of attention."""

from __future__ import annotations

import torch

from benchmarks.peers import Encode, Setup, absent, only_on, version_of
from benchmarks.peers.hugging_face import encoder

NAME = "transformers, flash-attn"


def version() -> str:
    return f"{version_of('transformers')}, flash-attn {version_of('flash-attn')}"


def missing(setup: Setup) -> str | None:
    return only_on(setup, "cuda", torch.float16, torch.bfloat16) or absent("flash_attn")


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    import transformers

    module = transformers.AutoModel.from_config(model.config, attn_implementation="flash_attention_2")
    module.load_state_dict(model.state_dict(), strict=False)
    return encoder(module.to(setup.device, setup.dtype).eval())
