"""A step of pretraining: forward, backward and fused AdamW over packed sequences of about 254 tokens."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.context import Context
from benchmarks.counting import host_syncs
from benchmarks.gpu import model_setup as setup

_SEQUENCES, _MEAN = 64, 254
_HIDDEN_SHARE = 0.15


def training(here: Context) -> Iterator[dict[str, Any]]:
    """BERT-large, masked words and next sentences: ours packed, ours the encoder alone, and transformers padded."""
    lengths = [7, 12] if here.rehearse else _lengths()
    texts = setup.texts(here, lengths)
    labels = _labels(here, texts)
    next_sentence = torch.zeros(len(lengths), dtype=torch.long, device=here.device)

    model = setup.ours(here, "large", "BertForPreTraining").train()
    packed_labels = labels[texts.attention_mask.bool()]

    def packed(model: nn.Module) -> Tensor:
        return model(texts.packed, labels=packed_labels, next_sentence_label=next_sentence).loss

    def encoder(model: nn.Module) -> Tensor:
        out = model.bert(texts.packed)
        return out.last_hidden_state.float().square().mean() + out.pooler_output.float().square().mean()

    with here.ours():
        yield from _row(here, "bert_fast, packed", model, packed, lengths)
        yield from _row(here, "bert_fast, packed, the encoder alone", model, encoder, lengths)
    try:
        peer = setup.theirs(here, model, "large", "sdpa", "AutoModelForPreTraining").train()

        def padded(model: nn.Module) -> Tensor:
            return model(**texts.padded, labels=labels, next_sentence_label=next_sentence).loss

        yield from _row(here, "transformers sdpa, padded", peer, padded, lengths)
    except Exception as error:  # noqa: BLE001 - a peer that cannot run is a result
        yield {"provider": "transformers sdpa, padded", "error": "".join(traceback.format_exception(error))[-4000:]}


def _row(
    here: Context, provider: str, model: nn.Module, loss_of: Callable[[nn.Module], Tensor], lengths: list[int]
) -> Iterator[dict[str, Any]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=here.device.type == "cuda")

    def step() -> None:
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()

    first = loss_of(model).item()
    timing = here.clock.steady(step)
    last = loss_of(model).item()
    if not (first == first and abs(last) < float("inf") and last == last):
        raise ArithmeticError(f"{provider}: the loss went from {first} to {last}")
    peak = here.peak_memory(step)
    tokens = sum(lengths)
    yield {
        "provider": provider, "batch": len(lengths), "tokens": tokens, "longest": max(lengths),
        "sequences_per_s": len(lengths) / timing.seconds, "tokens_per_s": tokens / timing.seconds,
        "flops_per_s": 3 * setup.flops(here, "large", lengths) / timing.seconds, "ms": timing.seconds * 1e3,
        "p20": timing.p20 * 1e3, "p80": timing.p80 * 1e3, "runs": timing.runs, "loss": [first, last],
        "host_syncs": host_syncs(step) if here.on_gpu else None, "peak_mib": None if peak is None else peak / 2**20,
    }  # fmt: skip


def _lengths() -> list[int]:
    """Of pretraining's pairs of segments: most near the limit of 512, many short, 254 on average."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(_SEQUENCES, generator=generator) * 2 * _MEAN
    return drawn.round().clamp(16, 512).int().tolist()


def _labels(here: Context, texts: setup.Texts) -> Tensor:
    """Masked-word labels ``[B, S]`` on 15% of the visible tokens, -100 elsewhere."""
    generator = here.generator(3)
    chosen = torch.rand(texts.input_ids.shape, generator=generator, device=here.device) < _HIDDEN_SHARE
    chosen &= texts.attention_mask.bool()
    chosen[0, 1] = True
    return texts.input_ids.masked_fill(~chosen, -100)
