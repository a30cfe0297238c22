"""Where a forward pass spends its time: the kernels of one pass by name, from PyTorch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmarks.context import Context
from benchmarks.gpu import model_setup as setup
from benchmarks.workloads import squad_lengths

_SHOWN = 20


def profile(here: Context) -> Iterator[dict[str, Any]]:
    """BERT-base dense 128, BERT-large over SQuAD-like lengths, and a training step's forward and backward."""
    yield from _passes(here, "base 128", "base", [8] * 2 if here.rehearse else [128] * 256)
    lengths = [9, 3, 16] if here.rehearse else squad_lengths(256)
    yield from _passes(here, "large squad", "large", lengths)
    yield from _passes(here, "large training", "large", lengths[:64], train=True)


def _passes(here: Context, name: str, size: str, lengths: list[int], train: bool = False) -> Iterator[dict[str, Any]]:
    model = setup.ours(here, size).train(train)
    texts = setup.texts(here, lengths)

    def run() -> None:
        with here.ours(), torch.set_grad_enabled(train):
            out = model(texts.packed).last_hidden_state
            if train:
                out.float().square().mean().backward()

    passes = 1 if here.rehearse else 3
    for _ in range(passes):
        run()
    yield {"model": name} | _profiled(here, run, passes)


def _profiled(here: Context, run: Callable[[], None], passes: int) -> dict[str, Any]:
    on_gpu = here.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(passes):
            run()
        if on_gpu:
            torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for event in profiler.events():
        kind = str(event.device_type).rpartition(".")[2]
        if kind == ("CUDA" if on_gpu else "CPU"):
            name = event.name if on_gpu or event.name.startswith(("aten::", "bert_fast::")) else "other"
            entry = found.setdefault(name, [0, 0.0])
            entry[0] += 1
            entry[1] += event.time_range.elapsed_us()
    ranked = sorted(found.items(), key=lambda item: -item[1][1])
    total = sum(time for _, time in found.values())
    shown = [
        {"name": name[:120], "launches": count / passes, "us": time / passes, "share": time / total if total else 0}
        for name, (count, time) in ranked[:_SHOWN]
    ]
    launches = sum(count for count, _ in found.values())
    return {"launches": launches / passes, "us": total / passes, "kernels": shown}
