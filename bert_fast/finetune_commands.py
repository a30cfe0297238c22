"""The commands that train models and use them: `finetune`, `evaluate`, `predict`. Nothing heavy is imported with it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from bert_fast.command_options import add_threads, set_threads

TASKS = ("classification", "regression", "multilabel", "tokens", "qa", "choice")
_MODEL_HELP = "the RUN of finetune, or a fine-tuned model's folder"
_FILE_HELP = ".jsonl, .json (SQuAD's too), .csv, .tsv, .parquet, .conll, .conllu; .gz is decompressed"
_NEEDED = {"accelerate", "sklearn", "scipy", "yaml", "tomli"}

# name -> help; all are options of finetune() by the same name
_COLUMNS = {
    "text": "column of the text",
    "pair": "column of the second text",
    "label": "column of the label(s) or the number",
    "tokens": "column of the words",
    "question": "column of the question",
    "context": "column of the text with the answer",
    "answers": "column of the answers",
}
_TRAINING: dict[str, tuple[type, str]] = {
    "epochs": (int, "passes over the rows (default 3)"),
    "steps": (int, "of the optimizer, at most"),
    "batch_size": (int, "rows of a batch (default 32)"),
    "max_length": (int, "tokens of a sequence (default: what the model takes; 384 for qa)"),
    "learning_rate": (float, "default 5e-5"),
    "warmup": (float, "share of steps (default 0.1)"),
    "dropout": (float, "default: what the checkpoint says"),
    "evaluate_every": (int, "steps (default: an epoch)"),
    "early_stopping": (int, "evaluations without a better one"),
    "best_metric": (str, "by which the best checkpoint is kept; the lowest loss: --best-metric=-eval_loss"),
    "class_weights": (str, "balanced"),
    "mixed_precision": (str, "no, bf16 or fp16"),
    "seed": (int, "default 0"),
}


_METAVARS = {int: "N", float: "X", str: "NAME"}


def add(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Add the commands to the parser's."""
    _add_finetune(commands, common)
    evaluate = commands.add_parser("evaluate", parents=[common], help="scores of a fine-tuned model on labelled rows")
    evaluate.add_argument("source", metavar="FILE", nargs="+", help=_FILE_HELP)
    evaluate.add_argument("--output", metavar="FILE", help="write the scores there too, as JSON")
    _add_using(evaluate)
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser(
        "predict",
        parents=[common],
        help="labels and scores for rows, as JSON lines",
        description="Writes a line of JSON for each row of INPUT, in order. The output is complete or not there.",
    )
    predict.add_argument("source", metavar="INPUT", nargs="+", help=_FILE_HELP + "; - is standard input")
    predict.add_argument("--output", required=True, metavar="FILE", help="ends in .jsonl; - is standard output")
    predict.add_argument("--keep", nargs="+", metavar="COLUMN", help="copied into the lines (default: id)")
    predict.add_argument("--overwrite", action="store_true", help="replace an output that is there already")
    _add_using(predict)
    predict.set_defaults(command=_predict)


def _add_finetune(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    finetune = commands.add_parser(
        "finetune",
        parents=[common],
        help="a checkpoint and labelled rows to a model that does a task",
        description="Fine-tunes the checkpoint DIR. Killed at any moment, the same command goes on from the last "
        "checkpoint. Everything may stand in --config; flags go before it. On several GPUs (evaluate and predict, "
        "too): torchrun --nproc-per-node N -m bert_fast finetune ...",
    )
    finetune.add_argument("--config", metavar="FILE", help=".yaml, .toml or .json of options by name")
    finetune.add_argument("--task", choices=TASKS)
    finetune.add_argument("--model", metavar="DIR", help="folder of a checkpoint and its tokenizer, or a hub name")
    finetune.add_argument("--train", nargs="+", metavar="FILE", help=_FILE_HELP)
    finetune.add_argument("--eval", nargs="+", metavar="FILE", help="the best checkpoint on these rows is kept")
    finetune.add_argument("--output", metavar="RUN", help="folder of the run; RUN/model is the result")
    _add_columns(finetune)
    group = finetune.add_argument_group("training")
    for name, (kind, said) in _TRAINING.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=_METAVARS[kind], help=said)
    finetune.add_argument("--no-resume", action="store_true", help="an error where RUN has begun already")
    add_threads(finetune)
    finetune.add_argument("--quiet", action="store_true", help="no line for every few steps")
    finetune.set_defaults(command=_finetune)


def _add_columns(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "rows", "A column is named as its flag unless it is said, and that of several labels a row is named labels."
    )
    for name, said in _COLUMNS.items():
        group.add_argument(f"--{name}", metavar="COLUMN", help=said)
    group.add_argument("--choices", nargs="+", metavar="COLUMN", help="columns of the choices, or of a list of them")
    group.add_argument("--labels", nargs="+", metavar="NAME", help="in order (default: what the rows hold)")
    group.add_argument("--format", help="where the suffix does not say it: jsonl, csv, tsv, squad, conll, ...")
    group.add_argument("--header", nargs="+", metavar="NAME", help="of a table whose first line is a row already")
    group.add_argument("--quotes", action=argparse.BooleanOptionalAction, help="of a table (default: csv yes, tsv no)")
    group.add_argument("--on-bad-row", choices=("raise", "skip"))
    group.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other option, as JSON or a string"
    )


def _add_using(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help=_MODEL_HELP)
    _add_columns(parser)
    parser.add_argument("--max-tokens", type=int, metavar="N", help="tokens per batch (default: 4096; 65536 on a GPU)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: what the model says")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    add_threads(parser)
    parser.add_argument("--quiet", action="store_true", help="no summary")


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by the names that the library has for them."""
    names = (*_COLUMNS, *_TRAINING, "choices", "labels", "format", "header", "quotes", "on_bad_row")
    options = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {text}: NAME=VALUE is needed")
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            options[name.replace("-", "_")] = value
    return options


def _finetune(arguments: argparse.Namespace) -> int:
    def run() -> tuple[str, dict[str, float]]:
        from bert_fast.training import finetune
        from bert_fast.training.config_file import read_config_file

        options = {} if arguments.config is None else read_config_file(arguments.config)
        for name in ("resume", "callbacks"):
            if name in options:
                raise ValueError(f"{arguments.config}: there is no option {name!r}")
        options |= _given(arguments)
        for name in ("task", "model", "train", "eval", "output"):
            if getattr(arguments, name) is not None:
                options[name] = getattr(arguments, name)
        missing = [name for name in ("task", "model", "train", "output") if name not in options]
        if missing:
            raise ValueError(f"--{missing[0]} is needed, as a flag or in --config")
        if not isinstance(options["output"], str):
            raise ValueError(f"output must be a folder's name, not {options['output']!r}")
        callbacks = [] if arguments.quiet else [_show]
        tuned = finetune(**options, resume=not arguments.no_resume, callbacks=callbacks)
        return options["output"], tuned.metrics

    set_threads(arguments.threads)
    output, metrics = _with_extras(run)
    if _first():
        if metrics:
            print(json.dumps(metrics, indent=1))
        if not arguments.quiet:
            print(f"{output}/model is the result", file=sys.stderr)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.output is not None and not os.path.isdir(os.path.dirname(arguments.output) or "."):
        raise ValueError(f"--output {arguments.output}: there is no such folder to write in")

    def run() -> dict[str, float]:
        from bert_fast.training.finetuning.ranks import started_ranks

        with started_ranks():
            tuned, reading = _loaded(arguments)
            return tuned.evaluate(arguments.source, max_tokens=arguments.max_tokens, shared=True, **reading)

    set_threads(arguments.threads)
    text = json.dumps(_with_extras(run), indent=1) + "\n"
    if not _first():
        return 0
    if arguments.output is not None:
        from bert_fast.io import atomic_write

        atomic_write(arguments.output, text.encode())
    print(text, end="")
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    def run() -> int:
        from bert_fast.training.finetuning import predict_file
        from bert_fast.training.finetuning.ranks import started_ranks

        options = {"keep": arguments.keep, "overwrite": arguments.overwrite, "max_tokens": arguments.max_tokens}
        with started_ranks():
            tuned, reading = _loaded(arguments)
            return predict_file(tuned, arguments.source, arguments.output, shared=True, **options, **reading)

    set_threads(arguments.threads)
    count = _with_extras(run)
    if not arguments.quiet and arguments.output != "-" and _first():
        print(f"{arguments.output}: {count:,} rows", file=sys.stderr)
    return 0


def _loaded(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The model, with task options as given, and what ``read_rows`` is told."""
    import torch

    from bert_fast.training.finetuning import FineTuned
    from bert_fast.training.finetuning.settings import READING

    options = _given(arguments)
    reading = {name: options.pop(name) for name in READING if name in options}
    device = arguments.device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: PyTorch finds no CUDA GPU here; bert-fast doctor says why")
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    return FineTuned.load(arguments.model, device=device, dtype=dtype, **options), reading


def _first() -> bool:
    """Whether this is the process that speaks, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _with_extras(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        raise ValueError(f'{error.name} is needed, and not installed: pip install "bert-fast[train]"') from error


def _show(line: Mapping[str, Any]) -> None:
    """A line of metrics, for people."""
    shown = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in line.items())
    print("  ".join(shown), file=sys.stderr, flush=True)
