"""Models and batches for the benchmarks: BERT-base and BERT-large with random weights, ours and transformers'."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import bert_fast
from benchmarks import shapes
from benchmarks.context import Context
from benchmarks.shapes import SHAPES
from bert_fast import PackedBatch


def settings(here: Context, size: str) -> dict[str, Any]:
    """The config of a model: "base" or "large"; tiny in a rehearsal."""
    return dict(SHAPES["tiny" if here.rehearse else size])


def ours(here: Context, size: str, kind: str = "BertModel") -> nn.Module:
    """One of our models, random weights in the context's dtype, in eval mode."""
    torch.manual_seed(0)
    with here.device:
        model = getattr(bert_fast, kind)(bert_fast.BertConfig(**settings(here, size)))
    return model.to(here.dtype).eval()


def theirs(here: Context, model: nn.Module, size: str, attention: str, auto: str = "AutoModel") -> nn.Module:
    """transformers' model with the same weights."""
    import transformers

    config = transformers.BertConfig(**settings(here, size))
    with here.device:
        peer = getattr(transformers, auto).from_config(config, attn_implementation=attention)
    peer = peer.to(here.dtype).eval()
    report = peer.load_state_dict(model.state_dict(), strict=False)
    if report.missing_keys:
        raise RuntimeError(f"transformers' model lacks weights of ours: {report.missing_keys}")
    return peer


def attention_kinds() -> dict[str, str | None]:
    """transformers' attention implementations worth measuring, with the reason against each that cannot run."""
    flash = None if importlib.util.find_spec("flash_attn") else "flash_attn is not installed"
    return {"sdpa": None, "flash_attention_2": flash}


def flops(here: Context, size: str, lengths: list[int]) -> float:
    """Floating-point operations of the encoder's forward pass over sequences of these lengths."""
    return shapes.flops(settings(here, size), lengths)


@dataclass(frozen=True)
class Texts:
    """A batch of random token ids, packed and padded."""

    lengths: list[int]
    packed: PackedBatch
    input_ids: Tensor
    attention_mask: Tensor

    @property
    def padded(self) -> dict[str, Tensor]:
        """Arguments of a forward pass over the padded batch."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


def texts(here: Context, lengths: list[int], seed: int = 0) -> Texts:
    """Random ids for sequences of these lengths, on the device."""
    vocabulary = settings(here, "base").get("vocab_size", 30522)
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(1, vocabulary, (len(lengths), longest), generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    packed = PackedBatch.from_sequences([row[:n].tolist() for row, n in zip(ids, lengths, strict=True)])
    ids = ids.masked_fill(~mask, 0).to(here.device)
    return Texts(lengths, packed.to(here.device), ids, mask.long().to(here.device))


def in_double(model: nn.Module) -> nn.Module:
    """A copy in float64: the truth."""
    return copy.deepcopy(model).double()
