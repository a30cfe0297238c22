"""Pre-training batches as a training loop receives them: from tokens to masked tensors, beside transformers.

    python -m benchmarks.loader --texts FILE [--workers 0] [--json OUT] [--rounds 5]

FILE holds one sentence a line and a blank line between documents. All contenders deliver an epoch of the same sentence
pairs in batches of 256, shuffled and masked anew: ours packed, ours padded, and PyTorch's DataLoader over pairs that
are lists already, with the collator of transformers. First ours are compared: packed and padded hold the same tokens
and labels.
"""

import argparse
import collections
import functools
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader
from transformers.data.data_collator import DataCollatorForLanguageModeling

import bert_fast
from benchmarks.environment import environment
from benchmarks.rounds import interleaved
from bert_fast.demo.run import model_folder
from bert_fast.io import atomic_write
from bert_fast.training.data import BatchPlan, PackedLoader, PretrainingData

BATCH = 256


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit status 1 if packed and padded batches differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    data = PretrainingData(options.texts, bert_fast.Tokenizer.from_pretrained(model_folder()), seq_length=128)
    packed = functools.partial(_ours, data, options.workers, False)
    padded = functools.partial(_ours, data, options.workers, True)
    same = all(_agree(one, other) for one, other in zip(packed(), padded(), strict=True))
    tokens = sum(batch.tokens for batch in packed())
    makers: dict[str, Callable[[], Iterable]] = {
        "bert_fast, packed": packed,
        "bert_fast, padded": padded,
        "transformers": _theirs(data, options.workers),
    }
    draining = {who: functools.partial(_drain, make) for who, make in makers.items()}
    timings = interleaved(draining, options.rounds)
    rows = {who: {"tokens_per_second": tokens / t.median, "spread": t.worst / t.best} for who, t in timings.items()}
    print(f"{tokens:,} tokens in pairs; packed and padded {'agree' if same else 'DIFFER'}")
    for who, row in rows.items():
        print(f"    {who:20s} {row['tokens_per_second']:13,.0f} tokens/s")
    if options.json:
        facts = {"tokens": tokens, "batch": BATCH, "workers": options.workers}
        report = {"environment": environment(), **facts, "results": rows}
        atomic_write(options.json, (json.dumps(report, indent=2) + "\n").encode())
    return 0 if same else 1


def _ours(data: PretrainingData, workers: int, padded: bool) -> Iterable:
    plan = BatchPlan([], batch_size=BATCH, shuffle=True)
    return PackedLoader(data, plan, replace(data.collator, padded=padded), num_workers=workers)


def _theirs(data: PretrainingData, workers: int) -> Callable[[], Iterable]:
    part = data.part(0, 0)
    special = np.array(sorted(data.masking.special_ids))
    rows = [
        {
            "input_ids": example.input_ids.tolist(),
            "token_type_ids": example.token_type_ids.tolist(),
            "special_tokens_mask": np.isin(example.input_ids, special).astype(int).tolist(),
            "next_sentence_label": int(example.labels[0]),
        }
        for example in part.take(np.arange(len(part)))
    ]
    collate = DataCollatorForLanguageModeling(transformers.AutoTokenizer.from_pretrained(model_folder()))
    return lambda: DataLoader(rows, BATCH, shuffle=True, collate_fn=collate, num_workers=workers)


def _agree(packed: dict, padded: dict) -> bool:
    there = padded["attention_mask"].bool()
    return all(
        torch.equal(one, other)
        for one, other in [
            (packed["input_ids"].input_ids, padded["input_ids"][there]),
            (packed["input_ids"].token_type_ids, padded["token_type_ids"][there]),
            (packed["labels"], padded["labels"][there]),
            (packed["next_sentence_label"], padded["next_sentence_label"]),
        ]
    )


def _drain(make: Callable[[], Iterable]) -> None:
    collections.deque(make(), maxlen=0)


if __name__ == "__main__":
    sys.exit(main())
