"""The training loop: steps over batches on whatever devices there are, to be stopped and taken up at any moment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from bert_fast.training import devices
from bert_fast.training.losses import Loss, ModelLoss
from bert_fast.training.positions import groups, resumable
from bert_fast.training.progress import Evaluate, Evaluations
from bert_fast.training.randomness import seed_all
from bert_fast.training.record import Record
from bert_fast.training.run import Run
from bert_fast.training.steps import Stepper


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` returns.

    Attributes:
        model: the trained model, unwrapped; with ``best_metric``, as it was at the best evaluation.
        step, epoch: how many were done.
        best, best_step: the best evaluation's ``best_metric``, and when that was.
        stopped_early: whether ``early_stopping`` ended the run.
    """

    model: nn.Module
    step: int
    epoch: int
    best: float | None
    best_step: int | None
    stopped_early: bool


def fit(
    model: nn.Module,
    loader: Any,
    optimizer: Optimizer,
    schedule: Any = None,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = True,
    loss: Loss | None = None,
    gradient_accumulation: int = 1,
    max_grad_norm: float | None = None,
    accelerator: Accelerator | None = None,
    mixed_precision: str | None = None,
    shard: bool = False,
    unused_parameters: bool = False,
    gradient_checkpointing: bool = False,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    best_metric: str | None = None,
    early_stopping: int | None = None,
    save_every: int | None = None,
    keep: int = 2,
    log_every: int = 10,
    seed: int | None = None,
    config: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callable[[Mapping[str, Any]], None]] = (),
) -> FitResult:
    """Train ``model``; started again after it was stopped in any way, go on as if it had not been.

    Args:
        model: one that ``loss`` understands; by default any that computes its own loss, as those of bert_fast do.
        loader: yields batches, mappings for ``model(**batch)``, and can be iterated once for every epoch: a
            ``PackedLoader``; a ``torch.utils.data.DataLoader``, which Accelerate shares out among processes (and whose
            last batches it may repeat to do so); or any iterable. With a ``state_dict`` it says itself where it is.
        optimizer: of the model's parameters, made before this call.
        schedule: has ``step()``, called after every step that moved something, and a ``state_dict``; None keeps rates.
        steps, epochs: how far to train, steps of the optimizer or passes over the data; whichever comes first.
        run_dir: where to write ``checkpoints/``, ``metrics.jsonl``, ``config.json``, ``environment.json``,
            ``command.txt``, ``plot.png`` and, at the end, ``model/``. None writes nothing.
        resume: go on from the newest checkpoint in ``run_dir``. False is an error where there is one.
        loss: see :class:`bert_fast.training.losses.Loss`.
        gradient_accumulation: batches to a step. The loss is the mean over their labels together, not of their means.
        max_grad_norm: clip the gradients' 2-norm; for an optimizer that does not clip by itself.
        accelerator: an own one, without gradient accumulation; otherwise one is made of the next three.
        mixed_precision: "no", "bf16" or "fp16" (with a loss scale, on GPUs).
        shard: cut parameters, gradients and optimizer state up among the processes (FSDP2), instead of copying them.
        unused_parameters: whether some parameters get no gradient; DDP has to know.
        gradient_checkpointing: recompute layers in the backward pass.
        evaluate: ``evaluate(model, accelerator)`` returns metrics; every process calls it, the model in eval mode and
            without gradients, and the first one's metrics count.
        evaluate_every: steps between evaluations; None: after every epoch, and at the end.
        best_metric: the metric to keep the best checkpoint by, as "accuracy"; "-loss" is better the lower.
        early_stopping: stop after so many evaluations without a better ``best_metric``.
        save_every: steps between checkpoints; None: after every epoch. The last step is always saved, and so is the
            best.
        keep: how many of the newest checkpoints stay, beside the best.
        log_every: steps between lines of metrics, which hold means over them.
        seed: of dropout: seeds all generators, differently in every process, unless the run goes on from a checkpoint.
        config: written to ``config.json``.
        callbacks: called in the main process with every line of metrics.

    Raises:
        NonFinite: the loss or, without a loss scale, a gradient was not finite. Nothing was moved; the state before
            the step and the numbers of the batch's examples are in ``run_dir``.
        SaveError: a checkpoint could not be written.
        ValueError: arguments that contradict each other; a loader without batches.
    """
    _check(locals())
    accelerator = accelerator or devices.make_accelerator(mixed_precision, unused_parameters)
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("give gradient_accumulation to fit, not to the Accelerator, which would divide by it again")
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    prepared, stepping = devices.prepare(accelerator, model, optimizer, shard)
    loader = resumable(loader, accelerator)
    take_step = Stepper(accelerator, prepared, stepping, loss or ModelLoss(), max_grad_norm)
    run = Run(
        accelerator, prepared, optimizer, schedule, loader,
        Record(accelerator, run_dir, keep, callbacks),
        Evaluations(evaluate, evaluate_every, best_metric, early_stopping),
        steps=steps, epochs=epochs, log_every=log_every, save_every=save_every,
    )  # fmt: skip
    if not run.taken_up(resume, config) and seed is not None:
        seed_all(seed + accelerator.process_index)

    prepared.train()
    while not run.done():
        before = run.progress.step
        for group in groups(loader, gradient_accumulation):
            with run.saved_if_not_finite(group):
                report = take_step(group.batches)
            if schedule is not None and not report.skipped:
                schedule.step()
            run.count(report, group)
            run.log(report)
            run.evaluate(group)
            run.save(group)
            if run.done():
                break
        if run.progress.step == before:
            again = f" in epoch {run.progress.epoch + 1}: it must be iterable anew in every epoch" if before else ""
            raise ValueError(f"the loader gave no batch{again}")
    progress = run.finish()
    stopped_early = run.evaluations.exhausted(progress)
    return FitResult(run.model, progress.step, progress.epoch, progress.best, progress.best_step, stopped_early)


def _check(given: dict[str, Any]) -> None:
    if given["steps"] is None and given["epochs"] is None:
        raise ValueError("give steps, epochs or both")
    for name in ("gradient_accumulation", "keep", "log_every"):
        if given[name] < 1:
            raise ValueError(f"{name} must be at least 1, not {given[name]}")
    for name in ("steps", "epochs", "evaluate_every", "save_every", "early_stopping"):
        if given[name] is not None and given[name] < 1:
            raise ValueError(f"{name} must be at least 1 or None, not {given[name]}")
    for name in ("best_metric", "evaluate_every"):
        if given[name] is not None and given["evaluate"] is None:
            raise ValueError(f"{name} needs evaluate")
    if given["early_stopping"] is not None and given["best_metric"] is None:
        raise ValueError("early_stopping needs best_metric")
    if given["accelerator"] is not None and given["mixed_precision"] is not None:
        raise ValueError("give mixed_precision to the Accelerator, not to fit beside it")
    limit = given["max_grad_norm"]
    if limit is not None and not limit > 0:
        raise ValueError(f"max_grad_norm must be above 0 or None, not {limit}")
    if limit is not None and getattr(given["optimizer"], "max_grad_norm", None) is not None:
        raise ValueError("give max_grad_norm to fit or to the optimizer, not to both")
