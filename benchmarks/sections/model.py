"""Throughput of whole encoders over mixes of lengths and over a sweep of padding, as handed in and sorted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.sections.encoders import Contender, base_model, ready
from benchmarks.settings import Settings
from benchmarks.shapes import flops
from benchmarks.workloads import MEANS, MIXES, Batch, batches, padded_lengths, random_ids

PADDING = (0.0, 0.2, 0.4, 0.6, 0.8)
AS_GIVEN, SORTED = "as handed in", "sorted"


def run(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row per workload, peer and order of the texts."""
    model = base_model(settings)
    contenders, others = ready(settings, model)
    yield from others
    for workload, ids in workloads(settings, model):
        yield from _compete(settings, model, workload, ids, contenders)


def workloads(settings: Settings, model: torch.nn.Module) -> Iterator[tuple[str, list[list[int]]]]:
    """Token ids of every workload asked for: "mix news", "padding 40%", "texts NAME"."""
    config = model.config
    for name, lengths in MIXES.items():
        if settings.wanted(f"mix {name}"):
            count = _count(settings, MEANS[name])
            cut = [min(n, config.max_position_embeddings) for n in lengths(count)]
            yield f"mix {name}", random_ids(cut, config.vocab_size)
    longest = min(128, config.max_position_embeddings)
    for share in PADDING:
        if settings.wanted(name := f"padding {share:.0%}"):
            size = 6 if settings.tiny else settings.batch_size
            yield name, random_ids(padded_lengths(size, longest, share), config.vocab_size)
    if settings.texts is not None:
        yield f"texts {settings.texts.name}", tokenized(settings, config.max_position_embeddings)


def tokenized(settings: Settings, longest: int) -> list[list[int]]:
    """The first texts of the file.

    Raises:
        ValueError: there are none.
    """
    import bert_fast

    lines = settings.texts.read_text(encoding="utf-8").splitlines()
    texts = [line.strip() for line in lines if line.strip()][: settings.sequences or 256]
    if not texts:
        raise ValueError(f"{settings.texts} holds no text: it must have one a line")
    tokenizer = bert_fast.Tokenizer.from_pretrained(settings.model)
    return tokenizer(texts, truncation=True, max_length=min(256, longest))["input_ids"]


# About so many tokens in a mix: passes of seconds on a CPU, and long enough on a GPU.
_TOKENS = {"cpu": {"minilm": 6144}, "cuda": {}}
_OTHERWISE = {"cpu": 2048, "cuda": 262144}


def _count(settings: Settings, mean: float) -> int:
    """Texts of a mix: one batch and a half at least, so that their order matters."""
    if settings.sequences:
        return settings.sequences
    if settings.tiny:
        return 6
    tokens = _TOKENS[settings.device].get(settings.model_name, _OTHERWISE[settings.device])
    return max(3 * settings.batch_size // 2, 16 * round(tokens / mean / 16))


def _compete(
    settings: Settings, model: torch.nn.Module, workload: str, ids: list[list[int]], contenders: Sequence[Contender]
) -> Iterator[dict[str, Any]]:
    orders = {AS_GIVEN: batches(ids, settings.batch_size), SORTED: batches(ids, settings.batch_size, by_length=True)}
    if len(orders[AS_GIVEN]) == 1:
        del orders[SORTED]  # one batch is one batch
    given = {order: [settings.to_device(batch) for batch in found] for order, found in orders.items()}
    runs = {(order, c.name): one_pass(c.encode, given[order]) for order in given for c in contenders}
    names = {f"{name}|{order}": (order, name) for order, name in runs}
    timings = settings.compete({label: runs[key] for label, key in names.items()})
    lengths, by_name = [len(row) for row in ids], {c.name: c for c in contenders}
    for label, timing in timings.items():
        order, name = names[label]
        peak = settings.context.peak_memory(runs[order, name])
        places = sum(batch.input_ids.numel() for batch in given[order])
        yield {
            "workload": workload, "peer": name, "version": by_name[name].version, "order": order,
            "model": settings.model_name, "dtype": settings.dtype, "error_ratio": by_name[name].error_ratio,
            "sequences": len(ids), "batch": settings.batch_size, "mean_tokens": sum(lengths) / len(lengths),
            "longest": max(lengths), "padding": 1 - sum(lengths) / places,
            "tokens_per_s": sum(lengths) / timing.seconds, "sequences_per_s": len(ids) / timing.seconds,
            "flops_per_s": flops(model.config.to_dict(), lengths) / timing.seconds,
            "s": timing.seconds, "p20": timing.p20, "p80": timing.p80, "runs": timing.runs,
            "peak_mib": None if peak is None else peak / 2**20,
        }  # fmt: skip


def one_pass(encode: Callable[[Batch], object], given: Sequence[Batch]) -> Callable[[], None]:
    """All batches once."""

    def run() -> None:
        for batch in given:
            encode(batch)

    return run


def ours(settings: Settings) -> Iterator[tuple[str, Callable[[], object]]]:
    """A pass of ours over each workload."""
    model = base_model(settings)
    ((contender,), _) = ready(settings, model, ("ours",))
    for workload, ids in workloads(settings, model):
        given = [settings.to_device(batch) for batch in batches(ids, settings.batch_size)]
        yield workload, one_pass(contender.encode, given)
