"""LoRA by PEFT in the Trainer of transformers, before and after `bert_fast.accelerate`: losses and seconds.

    python -m benchmarks.live_training --data DIR [--steps 100] [--threads N] [--json OUT]

all-MiniLM-L6-v2 learns to tell positive from negative reviews (DIR/imdb_cf/orig_train.tsv). Both runs start from the
same weights, see the same batches and drop nothing, so that their losses differ by rounding alone. Runs take turns; the
first step of each, in which memory is taken and modules are wrapped, is in no time.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import bert_fast
from benchmarks.environment import environment
from bert_fast.demo.run import model_folder
from bert_fast.integrations.switch import lives
from bert_fast.io import atomic_write
from bert_fast.rows import read_rows

CONTENDERS = ("untouched", "accelerated")
# What rounding in float32 may grow to over some hundred steps of AdamW.
ALLOWED = 1e-3


def main(arguments: list[str] | None = None) -> int:
    """Train and print; exit status 1 if losses differ by more than rounding, or the model's own code ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a folder of a BERT; all-MiniLM-L6-v2 by default")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error(f"--steps must be 2 or more, not {options.steps}: the first one is in no time")
    torch.set_num_threads(options.threads)
    options.model = options.model or model_folder()
    runs: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
    for _ in range(options.rounds):
        for name in CONTENDERS:
            runs[name].append(_run(name, options))
    results = _compared(runs)
    print(table(results, options.steps))
    if options.json:
        # Of the model its folder's name: where it lies says where somebody's files are, and nothing of the measurement.
        settings = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
        settings["model"] = options.model.name
        report = {"environment": environment(), "settings": settings, "results": results}
        atomic_write(options.json, (json.dumps(report, indent=2) + "\n").encode())
    packed = all(count == options.steps for count in results["packed_calls"]["accelerated"])
    return 0 if packed and results["largest_relative_difference"] <= ALLOWED else 1


class _Trainer(transformers.Trainer):
    """Theirs, which keeps every step's loss as it is, unrounded, and when the step was done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []
        self.ends: list[float] = []

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        self.ends.append(time.perf_counter())
        return loss


def _run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    transformers.set_seed(0)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*newly initialized")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, **none)
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = peft.get_peft_model(model.float(), lora)
    if name == "accelerated":
        bert_fast.accelerate(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as place:
        trainer = _Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=place,
                max_steps=options.steps,
                per_device_train_batch_size=options.batch_size,
                learning_rate=options.learning_rate,
                seed=0,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
            ),
            train_dataset=_examples(options, tokenizer),
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
    found = lives(model)
    return {
        "losses": trainer.losses,
        "seconds": trainer.ends[-1] - trainer.ends[0],
        "packed_calls": sum(live.accelerated for live in found),
        "own_code": [reason for live in found for reason in live.reasons],
    }


def _examples(options: argparse.Namespace, tokenizer: Any) -> list[dict[str, Any]]:
    rows = list(read_rows(options.data / "imdb_cf/orig_train.tsv", quotes=True))
    names = sorted({row["Sentiment"] for row in rows})
    encoded = tokenizer([row["Text"] for row in rows], truncation=True, max_length=options.max_length)
    labels = [names.index(row["Sentiment"]) for row in rows]
    return [{"input_ids": ids, "labels": label} for ids, label in zip(encoded["input_ids"], labels, strict=True)]


def _compared(runs: dict[str, list[dict]]) -> dict[str, Any]:
    """Losses (of the first round), the largest difference in any round, median seconds, and their ratio."""
    pairs = zip(runs["untouched"], runs["accelerated"], strict=True)
    seconds = {name: [run["seconds"] for run in own] for name, own in runs.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "losses": {name: own[0]["losses"] for name, own in runs.items()},
        "largest_relative_difference": max(_difference(a["losses"], b["losses"]) for a, b in pairs),
        "seconds": seconds,
        "times_as_fast": medians["untouched"] / medians["accelerated"],
        "packed_calls": {name: [run["packed_calls"] for run in own] for name, own in runs.items()},
        "own_code": sorted({reason for run in runs["accelerated"] for reason in run["own_code"]}),
    }


def _difference(theirs: Iterable[float], ours: Iterable[float]) -> float:
    return max(abs(a - b) / abs(a) for a, b in zip(theirs, ours, strict=True))


def table(results: dict[str, Any], steps: int) -> str:
    """A row of Markdown for each of both, and what they differ by."""
    lines = ["| LoRA in the Trainer | first loss | last loss | seconds |", "|---|---|---|---|"]
    for name, losses in results["losses"].items():
        seconds = statistics.median(results["seconds"][name])
        lines.append(f"| {name} | {losses[0]:.6f} | {losses[-1]:.6f} | {seconds:.2f} |")
    lines.append(
        f"\nlargest relative difference of {steps} losses {results['largest_relative_difference']:.1e}, "
        f"{results['times_as_fast']:.2f}x; packed calls {results['packed_calls']['accelerated']}, "
        f"own code: {', '.join(results['own_code']) or 'none'}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
