"""A step of training, masked words over padded batches: forward, backward, AdamW; beside transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import bert_fast
from benchmarks.settings import Settings
from benchmarks.shapes import SHAPES, flops
from benchmarks.timing import Timing
from benchmarks.workloads import MIXES, Batch, collate, random_ids

_HIDDEN_SHARE = 0.15
_BATCH = {"cpu": 16, "cuda": 64}
_LOSSES = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 3e-3}  # relative, by which a first loss may differ
Step = Callable[[], torch.Tensor]  # the loss, which nobody waits for


def run(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row per way of training; ways whose first loss is another one are reported and not timed."""
    batch, labels = _data(settings)
    steps = dict(_steps(settings, batch, labels))
    first = {name: step().item() for name, step in steps.items()}
    expected = first["transformers"]
    right: dict[str, Step] = {}
    for name, step in steps.items():
        # ours pools padded and packed input into the same tokens: only their order of summing differs
        off = abs(first[name] - expected) / abs(expected)
        if off <= _LOSSES[settings.dtype]:
            right[name] = step
        else:
            yield {"peer": name, "right": False, "first_loss": first[name], "expected": expected}
    for name, timing in settings.compete(right).items():
        last = right[name]().item()
        if not abs(last) < float("inf"):
            yield {"peer": name, "right": False, "first_loss": first[name], "last_loss": last}
            continue
        yield _row(settings, name, timing, batch) | {
            "first_loss": first[name], "last_loss": last, "peak_mib": _peak(settings, right[name]),
        }  # fmt: skip


def _row(settings: Settings, name: str, timing: Timing, batch: Batch) -> dict[str, Any]:
    shape = SHAPES[_size(settings)]
    return {
        "workload": "training, masked words", "peer": name, "model": settings.model_name, "dtype": settings.dtype,
        "batch": len(batch.lengths), "tokens": batch.tokens, "padding": batch.padding, "ms": timing.seconds * 1e3,
        "p20": timing.p20 * 1e3, "p80": timing.p80 * 1e3, "runs": timing.runs,
        "sequences_per_s": len(batch.lengths) / timing.seconds, "tokens_per_s": batch.tokens / timing.seconds,
        "flops_per_s": 3 * flops(shape, batch.lengths) / timing.seconds,
    }  # fmt: skip


def _peak(settings: Settings, step: Step) -> float | None:
    peak = settings.context.peak_memory(step)
    return None if peak is None else peak / 2**20


def _size(settings: Settings) -> str:
    if settings.tiny:
        return "tiny"
    if settings.model not in SHAPES:
        raise ValueError(f"training takes a size, one of {', '.join(SHAPES)}, as --model, not {settings.model!r}")
    return settings.model


def _data(settings: Settings) -> tuple[Batch, torch.Tensor]:
    shape = SHAPES[_size(settings)]
    vocabulary, longest = shape.get("vocab_size", 30522), shape.get("max_position_embeddings", 512)
    count = 3 if settings.tiny else _BATCH[settings.device]
    lengths = [min(n, longest) for n in MIXES["news" if settings.device == "cpu" else "squad"](count)]
    batch = collate(random_ids(lengths, vocabulary))
    generator = torch.Generator().manual_seed(3)
    chosen = (torch.rand(batch.input_ids.shape, generator=generator) < _HIDDEN_SHARE) & batch.attention_mask.bool()
    chosen[0, 1] = True
    labels = batch.input_ids.masked_fill(~chosen, -100).to(settings.context.device)
    return settings.to_device(batch), labels


def steps_of(settings: Settings) -> Iterator[tuple[str, Step]]:
    """Every way's step over the same batch, by name; each holds a model of its own."""
    batch, labels = _data(settings)
    return _steps(settings, batch, labels)


def _steps(settings: Settings, batch: Batch, labels: torch.Tensor) -> Iterator[tuple[str, Step]]:
    import transformers

    changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # so that losses can be compared
    shape = {**SHAPES[_size(settings)], **changes}
    torch.manual_seed(0)
    theirs = transformers.AutoModelForMaskedLM.from_config(transformers.BertConfig(**shape))
    theirs = theirs.to(settings.context.device, settings.torch_dtype).train()
    weights = {name: value.clone() for name, value in theirs.state_dict().items()}
    padded = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    yield "bert_fast", _step(_ours(settings, shape, weights), lambda m: m(**padded, labels=labels).loss, settings)
    small = {"labels": labels, "return_logits": False}
    yield (
        "bert_fast, without logits",
        _step(_ours(settings, shape, weights), lambda m: m(**padded, **small).loss, settings),
    )
    yield "transformers", _step(theirs, lambda m: m(**padded, labels=labels).loss, settings)


def _ours(settings: Settings, shape: dict[str, Any], weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = bert_fast.BertForMaskedLM(bert_fast.BertConfig(**shape))
    model.load_state_dict(weights)
    return model.to(settings.context.device, settings.torch_dtype).train()


def _step(model: torch.nn.Module, loss_of: Callable[[Any], torch.Tensor], settings: Settings) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=settings.context.on_gpu)

    def step() -> torch.Tensor:
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def ours(settings: Settings) -> Iterator[tuple[str, Callable[[], object]]]:
    """A step of ours."""
    batch, labels = _data(settings)
    for name, step in _steps(settings, batch, labels):
        if name.startswith("bert_fast"):
            yield name, step
