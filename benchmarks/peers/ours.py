"""bert_fast, given the padded batch as everybody else is."""

from __future__ import annotations

import torch

import bert_fast
from benchmarks.peers import Batch, Encode, Setup, version_of
from bert_fast.ops.quantized import int8_reasons

NAME = "bert_fast"


def version() -> str:
    return version_of("bert-fast")


def missing(setup: Setup) -> str | None:
    reasons = int8_reasons() if setup.dtype == torch.int8 else []
    return "; ".join(reasons) or None


def encoder_of(model: torch.nn.Module, setup: Setup) -> bert_fast.BertModel:
    """Our model with the weights of transformers' ``model``."""
    config = bert_fast.BertConfig.from_dict(model.config.to_dict())
    if setup.dtype == torch.int8:
        config.quantization = "int8"
    own = bert_fast.BertModel(config, add_pooling_layer=False).to(next(model.parameters()).dtype)
    own.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("pooler")})
    return own.to(setup.device).eval()


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    own = encoder_of(model, setup)

    def encode(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return own(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state

    return encode
