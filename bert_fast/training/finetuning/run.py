"""finetune: from a checkpoint and rows to a model that does a task."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bert_fast.models as models
from bert_fast.config import BertConfig
from bert_fast.tokenizer import Tokenizer
from bert_fast.training.data import BatchPlan, Example, PackedCollator, PackedLoader
from bert_fast.training.devices import make_accelerator
from bert_fast.training.finetuning.class_weights import WeightedLoss, weights_of
from bert_fast.training.finetuning.given import check_evaluation, check_rows, described, rows_of
from bert_fast.training.finetuning.inference import Predictor
from bert_fast.training.finetuning.ranks import Ranks
from bert_fast.training.finetuning.saved import FineTuned, folder_of, length_for, records_of
from bert_fast.training.finetuning.settings import FinetuneSettings, sorted_out
from bert_fast.training.groups import parameter_groups
from bert_fast.training.loop import fit
from bert_fast.training.optimizers import AdamW
from bert_fast.training.randomness import seed_all
from bert_fast.training.run_directory import RUNNING, RunDirectory
from bert_fast.training.schedules import linear_schedule
from bert_fast.training.tasks import Classification, Record, Task

_WINDOW = 1024
_MAY_CHANGE = {"evaluate_every", "early_stopping", "eval_max_tokens", *RUNNING}
_FILES = {"model", "train", "eval"}


def finetune(
    task: str | Task,
    model: str | os.PathLike[str],
    train: Any,
    eval: Any = None,
    output: str | os.PathLike[str] | None = None,
    *,
    callbacks: Iterable[Any] = (),
    resume: bool = True,
    **options: Any,
) -> FineTuned:
    """Fine-tune a checkpoint.

        from bert_fast.training import finetune

        run = finetune("classification", "DIR", "train.csv", "dev.csv", "run", text="review", label="stars")
        print(run.metrics)
        print(list(run.predict([{"review": "Good."}])))

    Args:
        task: one of ``bert_fast.training.tasks.TASKS`` by name: "classification" (of a text or a pair), "regression",
            "multilabel", "tokens", "qa", "choice"; or a task.
        model: the checkpoint's folder, or its name on the hub.
        train: the rows to train on: a file or whatever ``read_rows`` takes; read more than once (an iterator is held
            in memory for it), and held in memory as tokens.
        eval: the rows to evaluate on, read anew each time; the best of the checkpoints is then kept.
        output: the run's folder: checkpoints, metrics, and in ``model`` the result. Called again with the same
            arguments, a run that was stopped goes on; with others that would train another model, that is an error.
            None: nothing is written.
        callbacks: called with every line of metrics.
        resume: False is an error where ``output`` holds a run.
        options: of the task (its columns and labels), of training (:class:`FinetuneSettings`) and of ``read_rows``, all
            by name.

    Returns:
        the model, at its best evaluation, with its tokenizer, its task and that evaluation's metrics.

    Raises:
        ValueError: an option that is unknown or not allowed; InputError: a bad row, with file and line.
    """
    task, settings, reading = sorted_out(task, options)
    check_evaluation(settings, eval)
    directory = None if output is None else RunDirectory(output)
    if directory is not None:
        directory.check()
    path = folder_of(model)
    tokenizer = Tokenizer.from_pretrained(path)
    max_length = length_for(task, tokenizer, settings.max_length)
    rows = rows_of("train", train, reading)
    task = _with_names(task, train)
    given = getattr(task, "labels", ())
    if next(iter(rows), None) is None:
        raise ValueError(f"{rows.name}: there are no rows to train on")
    task = task.learned(iter(records_of(task, rows, True, {})))
    if isinstance(task, Classification) and not given and len(task.labels) == 1:
        warnings.warn(f"{rows.name}: every row is labelled {task.labels[0]!r}: there is nothing to learn", stacklevel=2)
    before = _names(BertConfig.from_pretrained(path).id2label)
    if not given and set(getattr(task, "labels", ())) == set(before):
        task = replace(task, labels=tuple(before))  # type: ignore[call-arg]
    config = described(task, settings, reading, model, train, eval)
    if directory is not None and resume:
        directory.check_same(config, free=_MAY_CHANGE, files=_FILES)
    examples = list(_examples(records_of(task, rows, True, {}), task, tokenizer, max_length))
    held_out = None if eval is None else rows_of("eval", eval, reading)

    accelerator = make_accelerator(settings.mixed_precision, unused_parameters=False)
    seed_all(settings.seed)
    network = _model(task, path, before, settings)
    tuned = FineTuned(network, tokenizer, task, max_length)
    best_metric = settings.best_metric or task.metric
    if held_out is not None:
        check_rows(tuned, held_out, best_metric)
    loader = _loader(examples, task, settings, accelerator.process_index, accelerator.num_processes)
    optimizer = AdamW(parameter_groups(network, settings.weight_decay), lr=settings.learning_rate)
    total = _steps(loader, settings)
    schedule = linear_schedule(optimizer, math.ceil(total * settings.warmup), total)

    def evaluated(network: torch.nn.Module, accelerator: Any) -> dict[str, float]:
        predictor = Predictor(network, task, tokenizer, max_length, settings.eval_max_tokens, Ranks.of_group())
        with accelerator.autocast():
            return predictor.evaluated(records_of(task, held_out, True, {}))

    history: list[Mapping[str, Any]] = []
    result = fit(
        network,
        loader,
        optimizer,
        schedule,
        steps=settings.steps,
        epochs=settings.epochs,
        run_dir=output,
        resume=resume,
        loss=_loss(task, settings, examples),
        gradient_accumulation=settings.gradient_accumulation,
        max_grad_norm=settings.max_grad_norm,
        accelerator=accelerator,
        shard=settings.shard,
        gradient_checkpointing=settings.gradient_checkpointing,
        evaluate=None if held_out is None else evaluated,
        evaluate_every=settings.evaluate_every,
        best_metric=None if held_out is None else best_metric,
        early_stopping=settings.early_stopping,
        save_every=settings.save_every,
        keep=settings.keep,
        log_every=settings.log_every,
        seed=settings.seed,
        config=config,
        callbacks=[*callbacks, history.append],
    )
    tuned.model = result.model.eval()
    if output is not None:
        if accelerator.is_main_process:
            tuned.save_beside(Path(output) / "model")
        accelerator.wait_for_everyone()
    tuned.metrics = Ranks.of_group().of_the_first(_best_metrics(history, result.best_step, output))
    return tuned


def _with_names(task: Task, train: Any) -> Task:
    """The task with the label names that a `datasets.Dataset` has for its numbers, unless names were given."""
    features = getattr(train, "features", None)
    if not isinstance(features, Mapping) or getattr(task, "labels", None) != ():
        return task
    feature = features.get(task.label)  # type: ignore[attr-defined]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return task if names is None else replace(task, labels=tuple(names))  # type: ignore[call-arg]


def _examples(records: Iterable[Record], task: Task, tokenizer: Tokenizer, max_length: int) -> Iterator[Example]:
    iterator, cut, count = iter(records), 0, 0
    while window := list(islice(iterator, _WINDOW)):
        encoded = task.encoded(window, tokenizer, max_length)
        cut, count = cut + encoded.cut, count + len(window)
        # what a task wants back with its predictions is of no use to training, and would be held for every example
        yield from (replace(example, info=None) for own in encoded.examples for example in own)
    if cut:
        warnings.warn(f"{cut:,} of {count:,} rows were longer than {max_length} tokens and were cut", stacklevel=3)


def _model(task: Task, path: Path, labels: list[str], settings: FinetuneSettings) -> Any:
    """The checkpoint with the task's head, which is new unless the checkpoint has one for the same ``labels``."""
    changed: dict[str, Any] = dict(task.config())
    if settings.dropout is not None:
        changed |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), settings.dropout)
        changed["classifier_dropout"] = None
    kind = getattr(models, task.model_class)
    other_labels = labels != _names(changed.get("id2label"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*initialised at random", category=UserWarning)
        model, report = kind.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=other_labels, **changed
        )
    random = [name for name in report["missing_keys"] if name.startswith(("bert.embeddings.", "bert.encoder."))]
    if random:
        raise ValueError(f"{path} is no BERT to fine-tune: it lacks {', '.join(random[:5])}")
    if other_labels and "id2label" in changed:
        model._init_weights(model.classifier)
    return model


def _names(id2label: Mapping[Any, str] | None) -> list[str]:
    return [] if id2label is None else [id2label[number] for number in sorted(id2label, key=int)]


def _loader(examples: list[Example], task: Task, settings: FinetuneSettings, rank: int, ranks: int) -> PackedLoader:
    plan = BatchPlan(
        np.array([len(example) for example in examples]),
        batch_size=settings.batch_size,
        max_tokens=settings.max_tokens,
        shuffle=True,
        group_by_length=settings.group_by_length,
        seed=settings.seed,
    )
    collate = PackedCollator(task.label_kind)
    return PackedLoader(
        examples, plan, collate, rank=rank, world_size=ranks, num_workers=settings.num_workers, pin_memory=True
    )


def _steps(loader: PackedLoader, settings: FinetuneSettings) -> int:
    per_epoch = math.ceil(len(loader) / settings.gradient_accumulation)
    by_epochs = None if settings.epochs is None else per_epoch * settings.epochs
    total = min(limit for limit in (by_epochs, settings.steps) if limit is not None)
    return max(total, 1)


def _loss(task: Task, settings: FinetuneSettings, examples: list[Example]) -> WeightedLoss | None:
    if settings.class_weights is None:
        return None
    if task.label_kind not in ("class", "token"):
        raise ValueError(f"class_weights are for one label per row or token, not for the task {task.name!r}")
    names: tuple[str, ...] = task.labels  # type: ignore[attr-defined]
    return WeightedLoss(weights_of(settings.class_weights, names, (example.labels for example in examples)))


def _best_metrics(history: list[Mapping[str, Any]], step: int | None, output: Any) -> dict[str, float]:
    """The evaluation of the best step, also where it was before this process."""
    if step is None:
        return {}
    if output is not None:
        history = list(RunDirectory(output).metrics())
    found = [line for line in history if line["step"] == step and "rows" in line]
    return {name: value for name, value in found[-1].items() if name not in ("step", "epoch")} if found else {}
