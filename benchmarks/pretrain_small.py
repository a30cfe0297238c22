"""A small BERT from scratch, masked tokens and sentence pairs, beside the same model trained through transformers.

    python -m benchmarks.pretrain_small --documents FILE --output DIR --minutes 20

Trains a tokenizer on the documents, then a model of 4 layers and hidden size 256 for ``--steps`` steps, or as many as
fit into ``--minutes``, and measures loss and accuracy on the last documents, held out. With ``--transformers``, the
same weights are trained on the same batches, padded, through transformers' model and PyTorch's AdamW, for as many
steps. Both go on where they were stopped; ``DIR/curves.png`` and ``DIR/report.json`` show both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from bert_fast.io import atomic_write

LENGTH, BATCH, VOCABULARY, HELD_OUT = 128, 32, 8000, 0.02


class OutOfTime(Exception):
    """The minutes are over."""


class Deadline:
    """Ends a run from within."""

    def __init__(self, minutes: float) -> None:
        self.at = time.monotonic() + 60 * minutes

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Called with a line of metrics."""
        print(json.dumps(line), flush=True)
        if time.monotonic() > self.at:
            raise OutOfTime


def split(source: Path, folder: Path) -> tuple[Path, Path]:
    """The documents to train on, and those held out."""
    documents = source.read_text(encoding="utf-8").strip().split("\n\n")
    cut = len(documents) - max(2, int(len(documents) * HELD_OUT))
    parts = (folder / "train.txt", documents[:cut]), (folder / "held_out.txt", documents[cut:])
    for path, part in parts:
        atomic_write(path, ("\n\n".join(part) + "\n").encode())
    return parts[0][0], parts[1][0]


def settings(arguments: argparse.Namespace, folder: Path, run: str):
    """Of our run."""
    from bert_fast.training import PretrainSettings

    return PretrainSettings(
        documents=[str(folder / "train.txt")],
        eval_documents=[str(folder / "held_out.txt")],
        tokenizer=str(folder / "tokenizer"),
        output=str(folder / run),
        cache=str(folder / "corpus"),
        model="mini",
        max_length=LENGTH,
        steps=arguments.steps,
        batch_size=BATCH,
        optimizer="adamw",
        learning_rate=arguments.learning_rate,
        warmup=0.06,
        dropout=arguments.dropout,
        evaluate_every=arguments.evaluate_every,
        save_every=arguments.evaluate_every,
        log_every=10,
        keep=1,
        seed=arguments.seed,
    )


def ours(arguments: argparse.Namespace, folder: Path) -> None:
    """Through ``bert_fast.training.pretrain``."""
    from bert_fast.training import pretrain

    pretrain(settings(arguments, folder, "ours"), [Deadline(arguments.minutes)])


def theirs(arguments: argparse.Namespace, folder: Path) -> None:
    """transformers' model on the same batches in padded form, from the weights that ours began with."""
    import transformers

    from bert_fast import Tokenizer
    from bert_fast.training import fit, linear_schedule, parameter_groups
    from bert_fast.training.devices import make_accelerator
    from bert_fast.training.pretraining import run
    from bert_fast.training.randomness import seed_all

    made = replace(settings(arguments, folder, "transformers"), cache=str(folder / "corpus"))
    accelerator, tokenizer = make_accelerator(), Tokenizer.from_pretrained(made.tokenizer)
    seed_all(made.seed)
    begun = run.new_model(made, tokenizer)
    model = transformers.BertForPreTraining(transformers.BertConfig(**begun.config.to_dict()))
    model.load_state_dict(begun.state_dict())
    loader = run.phased_loader(made, tokenizer, accelerator)
    for phase in loader.loaders:
        phase.collate = replace(phase.collate, padded=True, pad_token_id=tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(parameter_groups(model, made.weight_decay), lr=made.learning_rate)
    measure = run.held_out(made, tokenizer, accelerator)

    def evaluate(model, accelerator):
        begun.load_state_dict(model.state_dict())
        return measure(begun.eval(), accelerator)

    fit(
        model,
        loader,
        optimizer,
        linear_schedule(optimizer, made.warmup_steps, made.total_steps),
        steps=made.total_steps,
        run_dir=made.output,
        max_grad_norm=made.max_grad_norm,
        accelerator=accelerator,
        evaluate=evaluate,
        evaluate_every=made.evaluate_every,
        save_every=made.save_every,
        keep=1,
        seed=made.seed,
        callbacks=[Deadline(arguments.minutes)],
    )


def report(arguments: argparse.Namespace, folder: Path) -> None:
    """Curves of what is there."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = {"mlm_loss": 1, "eval_mlm_loss": 2, "eval_mlm_accuracy": 3, "eval_nsp_accuracy": 4}
    found: dict[str, Any] = {"settings": {"length": LENGTH, "batch": BATCH, "steps": arguments.steps}}
    for run in ("ours", "transformers"):
        file = folder / run / "metrics.jsonl"
        if not file.is_file():
            continue
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        speeds = [line["seconds_per_step"] for line in lines if "seconds_per_step" in line]
        last = [line for line in lines if "eval_mlm_loss" in line]
        found[run] = {"seconds_per_step": sum(speeds) / max(len(speeds), 1), "last": last[-1] if last else None}
        for name, place in panels.items():
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes = figure.add_subplot(2, 2, place)
            axes.set_title(name)
            axes.set_xlabel("step")
            if points:
                axes.plot(*zip(*points, strict=True), label=run)
                axes.legend()
    found["environment"] = environment()
    figure.savefig(folder / "curves.png", dpi=110)
    atomic_write(folder / "report.json", (json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps({k: v for k, v in found.items() if k != "environment"}, indent=1))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0, help="for each of the two")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transformers", action="store_true", help="also train through transformers")
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer").is_dir():
        from bert_fast.tokenizer.training import train_tokenizer_files

        train, _ = split(arguments.documents, folder)
        train_tokenizer_files([train], folder / "tokenizer", vocab_size=VOCABULARY)
    for run in (ours, theirs) if arguments.transformers else (ours,):
        try:
            run(arguments, folder)
        except OutOfTime:
            print(f"{run.__name__}: stopped after {arguments.minutes} minutes; the same command goes on")
    report(arguments, folder)


if __name__ == "__main__":
    main()
