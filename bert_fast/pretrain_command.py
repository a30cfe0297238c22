"""The command `pretrain`: its flags, a configuration file, and lines of progress. Nothing heavy is imported with it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from bert_fast.command_options import add_threads, set_threads

# name -> (type, how many, help); one for each of PretrainSettings
_ONE, _SOME = None, "+"
_FLAGS: dict[str, tuple[type, str | None, str]] = {
    "documents": (str, _SOME, "text (a sentence a line, a blank line between documents) or rows with --text-field"),
    "tokenizer": (str, _ONE, "its folder, as `bert-fast tokenizer train` writes one"),
    "output": (str, _ONE, "folder of the run; RUN/model is the result"),
    "model": (str, _ONE, "tiny, mini, small, medium, base (default), large, or a config.json"),
    "checkpoint": (str, _ONE, "a model's folder to start from, in place of --model"),
    "nsp": (bool, _ONE, "pairs of sentences, and whether the second follows (default)"),
    "max_length": (int, _SOME, "tokens of a sequence, in each phase (default 128)"),
    "steps": (int, _SOME, "of the optimizer, in each phase"),
    "batch_size": (int, _SOME, "sequences of a step, over all processes (default 256)"),
    "gradient_accumulation": (int, _ONE, "in how many batches a step is computed"),
    "packed_windows": (bool, _ONE, "sequences share windows of --max-length"),
    "optimizer": (str, _ONE, "lamb (default) or adamw"),
    "learning_rate": (float, _ONE, "the highest (default 1e-3)"),
    "weight_decay": (float, _ONE, "not of biases and LayerNorms (default 0.01)"),
    "betas": (float, "2", "of the optimizer (default 0.9 0.999)"),
    "eps": (float, _ONE, "of the optimizer"),
    "bias_correction": (bool, _ONE, "of the optimizer (default yes)"),
    "warmup": (float, _ONE, "steps, or below 1 their share (default 0.1)"),
    "decay_power": (float, _ONE, "1: a line (default)"),
    "decay_from_start": (bool, _ONE, "count the decay from step 0"),
    "max_grad_norm": (float, _ONE, "clip the gradient (default 1)"),
    "mask_probability": (float, _ONE, "of a token (default 0.15)"),
    "max_predictions": (int, _SOME, "exactly so many masks at most, in each phase"),
    "whole_words": (bool, _ONE, "mask whole words"),
    "short_probability": (float, _ONE, "of documents with shorter pairs (default 0.1)"),
    "dropout": (float, _ONE, "default: 0.1, or what the checkpoint says"),
    "text_field": (str, _ONE, "of rows (default text)"),
    "cache": (str, _ONE, "folder for tokenized documents (default RUN/corpus)"),
    "eval_documents": (str, _SOME, "held-out files"),
    "evaluate_every": (int, _ONE, "steps (default 1000)"),
    "save_every": (int, _ONE, "steps between checkpoints (default 1000)"),
    "keep": (int, _ONE, "checkpoints (default 2)"),
    "log_every": (int, _ONE, "steps between lines of metrics (default 10)"),
    "mixed_precision": (str, _ONE, "no, bf16 or fp16"),
    "shard": (bool, _ONE, "cut the model up among the processes (FSDP2)"),
    "gradient_checkpointing": (bool, _ONE, "recompute layers in the backward pass"),
    "seed": (int, _ONE, "of weights, masks, pairs, order and dropout (default 0)"),
    "num_workers": (int, _ONE, "processes that make batches"),
}


def add(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "pretrain",
        parents=[common],
        help="documents and a tokenizer to a model",
        description="Trains a BERT on documents. Killed at any moment, the same command goes on from the last "
        "checkpoint. A flag wins over the file, and the file over the recipe. On several GPUs: "
        "torchrun --nproc-per-node N -m bert_fast pretrain ...",
    )
    parser.add_argument("--config", metavar="FILE", help=".yaml, .toml or .json of the settings below by name")
    parser.add_argument("--recipe", metavar="NAME", help="google: BERT's published settings; google-whole-word")
    for name, (kind, count, said) in _FLAGS.items():
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=said)
        else:
            many = int(count) if count == "2" else count
            parser.add_argument(flag, type=kind, nargs=many, metavar=kind.__name__.upper(), help=said)
    add_threads(parser)
    parser.add_argument("--quiet", action="store_true", help="no lines of progress")
    parser.set_defaults(command=_pretrain)


def _pretrain(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    from bert_fast.training.config_file import read_config_file
    from bert_fast.training.pretraining.settings import settings_from

    values: dict[str, Any] = {} if arguments.config is None else read_config_file(arguments.config)
    recipe = arguments.recipe or values.get("recipe")
    values.pop("recipe", None)
    values |= {name: value for name in _FLAGS if (value := getattr(arguments, name)) is not None}
    settings = settings_from(values, recipe)
    try:
        from bert_fast.training import pretrain
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise ValueError("pretrain needs accelerate: pip install 'bert-fast[train]'") from error
    result = pretrain(settings, [] if arguments.quiet else [_Progress(settings.total_steps)])
    if os.environ.get("RANK", "0") == "0" and not arguments.quiet:
        print(f"{settings.output}/model after {result.step:,} steps", file=sys.stderr)
    return 0


class _Progress:
    """A line for every line of metrics: the numbers, and how long it will take."""

    def __init__(self, total: int) -> None:
        self.total, self.begun, self.first = total, time.monotonic(), -1

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Print ``line``."""
        step = line["step"]
        if self.first < 0:
            self.begun, self.first = time.monotonic(), step
        shown = [f"{k} {v:.4g}" for k, v in line.items() if isinstance(v, float)]
        done = step - self.first
        if done:
            left = (time.monotonic() - self.begun) / done * (self.total - step)
            shown.append(f"{left / 60:.0f} min left")
        print(f"step {step:,} of {self.total:,}: " + ", ".join(shown), file=sys.stderr, flush=True)
