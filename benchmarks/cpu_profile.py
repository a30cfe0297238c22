"""Where an encoder's time on CPU goes: products, attention, the rest; and how near the products come to their roof.

    python -m benchmarks.cpu_profile [--model minilm] [--mix news] [--json OUT]

For each dtype one forward pass after another over a mix of lengths, batches of 32, with a clock around each call of a
product, of attention and of what else a layer runs. The roof is the layer's own products, of 1,024 rows in a loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import bert_fast
from benchmarks.environment import environment
from benchmarks.shapes import SHAPES
from benchmarks.workloads import MEANS, MIXES, Batch, batches, random_ids
from bert_fast import ops
from bert_fast.io import atomic_write
from bert_fast.layers import quantized
from bert_fast.ops.linear import PART_ROWS, PackedLinear, onednn_runs, pack_linear
from bert_fast.ops.quantized import ByteLinear, byte_linear, byte_rows, int8_reasons

DTYPES = {"float32": {}, "bfloat16": {}, "int8": {"quantization": "int8"}}
# What a pass consists of, by the objects that the layers call it through.
_PARTS: tuple[tuple[Any, str, str], ...] = (
    (PackedLinear, "__call__", "products"),
    (PackedLinear, "add", "products"),
    (ByteLinear, "__call__", "products"),
    (ops, "attention_joined", "attention"),
    (ops, "layer_norm", "LayerNorm"),
    (quantized, "byte_rows", "bytes"),
    (quantized, "byte_gelu", "bytes"),
    (quantized, "from_bytes", "bytes"),
    (quantized, "byte_add_layer_norm", "bytes"),
)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="minilm")
    parser.add_argument("--mix", choices=MIXES, default="news")
    parser.add_argument("--sequences", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    config = bert_fast.BertConfig(**SHAPES[options.model])
    lengths = [min(n, config.max_position_embeddings) for n in MIXES[options.mix](options.sequences)]
    given = batches(random_ids(lengths, config.vocab_size), 32)
    print(f"{options.model}, {options.mix} ({MEANS[options.mix]:.0f} tokens on average), {options.threads} threads")
    results = {dtype: profile(config, dtype, given, options.rounds) for dtype in DTYPES if not _missing(dtype)}
    for dtype, row in results.items():
        shares = ", ".join(f"{name} {share:.0%}" for name, share in row["shares"].items())
        reached = f"products at {row['products_per_s'] / 1e9:.0f} of {row['roof_per_s'] / 1e9:.0f} GOP/s"
        print(f"{dtype:9s} {row['tokens_per_s']:7,.0f} tokens/s; {shares}; {reached}")
    if options.json:
        what = {"model": options.model, "mix": options.mix, "sequences": options.sequences}
        report = {"environment": environment(), **what, "results": results}
        atomic_write(options.json, (json.dumps(report, indent=2) + "\n").encode())
    return 0


def _missing(dtype: str) -> bool:
    return bool(int8_reasons()) if dtype == "int8" else not onednn_runs(getattr(torch, dtype))


@torch.no_grad()
def profile(config: bert_fast.BertConfig, dtype: str, given: list[Batch], rounds: int) -> dict[str, Any]:
    """Shares of the time, and operations a second of the products beside the roof."""
    torch.manual_seed(0)
    settings = {**config.to_dict(), **DTYPES[dtype]}
    model = bert_fast.BertModel(bert_fast.BertConfig.from_dict(settings), add_pooling_layer=False).eval()
    kind = torch.float32 if dtype == "int8" else getattr(torch, dtype)
    model = model.to(kind)

    def one_pass() -> float:
        began = time.perf_counter()
        for batch in given:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return time.perf_counter() - began

    one_pass()
    total = statistics.median(one_pass() for _ in range(rounds))
    found: list[Counter[str]] = []
    for _ in range(rounds):
        with clocked() as seconds:
            whole = one_pass()
        seconds["the rest"] = whole - sum(seconds.values())
        found.append(seconds)
    parts = {name: statistics.median(seconds[name] for seconds in found) for name in found[0]}
    tokens = sum(batch.tokens for batch in given)
    hidden, inner = config.hidden_size, config.intermediate_size
    operations = 2 * config.num_hidden_layers * hidden * (4 * hidden + 2 * inner) * tokens
    return {
        "tokens_per_s": tokens / total,
        "shares": {name: value / sum(parts.values()) for name, value in sorted(parts.items(), key=lambda x: -x[1])},
        "products_per_s": operations / parts["products"],
        "roof_per_s": roof(hidden, inner, dtype, rounds),
    }


@contextmanager
def clocked() -> Iterator[Counter[str]]:
    """Within the block, seconds of each part are added up."""
    seconds: Counter[str] = Counter()
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in _PARTS]

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[part] += time.perf_counter() - began
            return result

        return call

    try:
        for owner, name, part in _PARTS:
            setattr(owner, name, timed(getattr(owner, name), part))
        yield seconds
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def roof(hidden: int, inner: int, dtype: str, rounds: int) -> float:
    """Operations a second of a layer's four products over ``PART_ROWS`` rows, by themselves."""
    best = float("inf")
    runs = []
    for out, width in ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)):
        x, weight = torch.randn(PART_ROWS, width), torch.randn(out, width)
        if dtype == "int8":
            runs.append((byte_linear(weight, None), byte_rows(x)))
        else:
            kind = getattr(torch, dtype)
            runs.append((pack_linear(weight, None, kind), x.to(kind)))
    for _ in range(10 * rounds):
        began = time.perf_counter()
        for product, x in runs:
            product(x)
        best = min(best, time.perf_counter() - began)
    return 2 * PART_ROWS * hidden * (4 * hidden + 2 * inner) / best


if __name__ == "__main__":
    sys.exit(main())
