"""Whole models: throughput, latency and a training step, beside transformers, with memory and host syncs."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import bert_fast
from benchmarks.context import Context, context
from benchmarks.contract import error_ratios
from benchmarks.counting import host_syncs
from benchmarks.gpu import model_setup as setup
from benchmarks.graphs import capture
from benchmarks.options import Options
from benchmarks.timing import Timing
from benchmarks.workloads import squad_lengths


def run(name: str, options: Options) -> Iterator[dict[str, Any]]:
    """One item of the plan: a row per way of running the model."""
    here = context(options)
    here.forget_compiled()
    if name == "training":
        from benchmarks.gpu.training import training

        yield from training(here)
    elif name == "profile":
        from benchmarks.gpu.profile import profile

        yield from profile(here)
    else:
        items = {"base 128": _base, "large squad": _large, "latency": _latency, "compiled": _compiled}
        yield from items[name](here)


def _base(here: Context) -> Iterator[dict[str, Any]]:
    """BERT-base over dense batches of 128 tokens each."""
    model = setup.ours(here, "base")
    yield contract(here, model, setup.texts(here, [8, 5] if here.rehearse else [128, 128, 128, 128]))
    for batch in (2,) if here.rehearse else (256, 64, 512):
        texts = setup.texts(here, [8 if here.rehearse else 128] * batch)
        yield from _ours(here, model, "base", texts, dense=True)
        if batch in (2, 256):
            yield from _theirs(here, model, "base", texts, dense=True)


def _large(here: Context) -> Iterator[dict[str, Any]]:
    """BERT-large over SQuAD-like lengths: see ``squad_lengths`` for what stands in for the data set."""
    model = setup.ours(here, "large")
    lengths = [9, 3, 16] if here.rehearse else squad_lengths(256)
    yield contract(here, model, setup.texts(here, lengths[:4]))
    texts = setup.texts(here, lengths)
    yield from _ours(here, model, "large", texts)
    yield from _theirs(here, model, "large", texts)


def _latency(here: Context) -> Iterator[dict[str, Any]]:
    """One sequence of 128 tokens, from the call to the answer."""
    model = setup.ours(here, "base")
    texts = setup.texts(here, [8 if here.rehearse else 128])
    with here.ours(), torch.no_grad():
        for way, call in {
            "padded": lambda: model(input_ids=texts.input_ids),
            "packed": lambda: model(texts.packed),
        }.items():
            yield {"provider": "bert_fast", "way": f"eager, {way}"} | _milliseconds(here.clock.latency(call))
        yield from _graphed(here, "bert_fast", lambda: model(texts.packed).last_hidden_state)
    peer = setup.theirs(here, model, "base", "sdpa")

    def theirs() -> Tensor:
        return peer(input_ids=texts.input_ids).last_hidden_state

    with torch.no_grad():
        yield {"provider": "transformers sdpa", "way": "eager"} | _milliseconds(here.clock.latency(theirs))
        yield from _graphed(here, "transformers sdpa", theirs)


def _compiled(here: Context) -> Iterator[dict[str, Any]]:
    """What torch.compile makes of both, dense 128: slow to make, so last."""
    model = setup.ours(here, "base")
    texts = setup.texts(here, [8] * 2 if here.rehearse else [128] * 256)
    peer = setup.theirs(here, model, "base", "sdpa")
    for name, module in (("transformers sdpa, torch.compile", peer), ("bert_fast, torch.compile", model)):
        compiled = here.compiled(module)
        with here.ours(), torch.no_grad():
            yield from _throughput(here, name, "base", texts, lambda call=compiled: call(input_ids=texts.input_ids))


def _ours(here: Context, model: nn.Module, size: str, texts: setup.Texts, dense: bool = False) -> Iterator[dict]:
    padded = {"input_ids": texts.input_ids} if dense else texts.padded
    ways: dict[str, Callable[[], object]] = {
        "packed": lambda: model(texts.packed),
        "dense" if dense else "padded with a mask": lambda: model(**padded),
    }
    for way, call in ways.items():
        with here.ours(), torch.no_grad():
            yield from _throughput(here, f"bert_fast, {way}", size, texts, call)


def _theirs(here: Context, model: nn.Module, size: str, texts: setup.Texts, dense: bool = False) -> Iterator[dict]:
    padded = {"input_ids": texts.input_ids} if dense else texts.padded
    for kind, reason in setup.attention_kinds().items():
        name = f"transformers {kind}"
        if reason:
            yield {"provider": name, "not run": reason}
            continue
        try:
            peer = setup.theirs(here, model, size, kind)
            with torch.no_grad():
                yield from _throughput(here, name, size, texts, lambda peer=peer: peer(**padded))
        except Exception as error:  # noqa: BLE001 - a peer that cannot run is a result
            yield {"provider": name, "error": "".join(traceback.format_exception(error))[-4000:]}


def _throughput(
    here: Context, provider: str, size: str, texts: setup.Texts, call: Callable[[], object]
) -> Iterator[dict[str, Any]]:
    timing = here.clock.steady(call)
    count, tokens = len(texts.lengths), sum(texts.lengths)
    row = {
        "provider": provider, "batch": count, "tokens": tokens, "longest": max(texts.lengths),
        "sequences_per_s": count / timing.seconds, "tokens_per_s": tokens / timing.seconds,
        "flops_per_s": setup.flops(here, size, texts.lengths) / timing.seconds,
        "host_syncs": host_syncs(call) if here.on_gpu else None,
    }  # fmt: skip
    peak = here.peak_memory(call)
    yield row | _milliseconds(timing) | ({} if peak is None else {"peak_mib": peak / 2**20})


def _graphed(here: Context, provider: str, call: Callable[[], Tensor]) -> Iterator[dict[str, Any]]:
    """Latency of a CUDA graph's replay, after a check that it gives what the call gives."""
    row: dict[str, Any] = {"provider": provider, "way": "CUDA graph"}
    if here.device.type != "cuda":
        yield row | {"not run": "needs a GPU"}
        return
    try:
        replay, out = capture(call)
        expected = call().clone()
        out.fill_(float("nan"))
        replay()
        difference = (out - expected).abs().max().item()
        if not difference <= 0.1 * expected.abs().max().item():
            raise ArithmeticError(f"the replay differs from the call by {difference}")
        yield row | {"difference": difference} | _milliseconds(here.clock.latency(replay))
    except Exception as error:  # noqa: BLE001 - what cannot be captured is a result
        yield row | {"error": "".join(traceback.format_exception(error))[-4000:]}


def contract(here: Context, model: nn.Module, texts: setup.Texts) -> dict[str, Any]:
    """Our packed outputs against float64, by what PyTorch's ops err in the same dtype.

    Raises:
        ArithmeticError: they are further off than the contract allows.
    """
    with torch.no_grad():
        with bert_fast.use_backend("reference"):
            truth, eager = (m(texts.packed).last_hidden_state for m in (setup.in_double(model), model))
        with here.ours():
            found = model(texts.packed).last_hidden_state
    ratio = max(error_ratios(found, eager, truth, here.dtype, 4 * model.config.hidden_size))
    if not ratio <= 1 or not torch.isfinite(found).all():
        raise ArithmeticError(f"the model's error is {ratio:.2f} times what the numeric contract allows")
    return {"provider": "bert_fast", "error_ratio": ratio, "right": True}


def _milliseconds(timing: Timing) -> dict[str, Any]:
    return {
        "ms": timing.seconds * 1e3, "p20": timing.p20 * 1e3, "p80": timing.p80 * 1e3,
        "runs": timing.runs,
    }  # fmt: skip
