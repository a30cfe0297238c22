"""A run under way: what follows a step, and how it is taken up where it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.optim import Optimizer

from bert_fast.training import checkpointing, state
from bert_fast.training.positions import Group
from bert_fast.training.progress import Evaluations, Progress
from bert_fast.training.randomness import generators, set_generators
from bert_fast.training.record import Clock, Record
from bert_fast.training.steps import NonFinite, StepReport

_PRETRAINING = {"labels": "mlm_loss", "next_sentence_label": "nsp_loss"}


class Run:
    """Counts, measures, evaluates and saves; every process has one, and does the same in the same order."""

    def __init__(
        self,
        accelerator: Accelerator,
        prepared: nn.Module,
        optimizer: Optimizer,
        schedule: Any,
        loader: Any,
        record: Record,
        evaluations: Evaluations,
        *,
        steps: int | None,
        epochs: int | None,
        log_every: int,
        save_every: int | None,
    ) -> None:
        self.accelerator, self.prepared = accelerator, prepared
        self.model = accelerator.unwrap_model(prepared)
        self.optimizer, self.schedule, self.loader = optimizer, schedule, loader
        self.record, self.evaluations = record, evaluations
        self.steps, self.epochs, self.log_every, self.save_every = steps, epochs, log_every, save_every
        self.progress = Progress()
        self.position = loader.state_dict()
        self.rate = self._rate()
        self.improved = False
        self.best_weights: dict[str, Any] | None = None
        self.clock = Clock()

    def taken_up(self, resume: bool, config: Mapping[str, Any] | None) -> bool:
        """Load the newest checkpoint; False where there is none."""
        newest = self.record.begin(resume, config)
        if newest is None:
            return False
        rest = checkpointing.load(newest, self.accelerator, self.model, self.optimizer)
        self.progress = Progress(**rest["progress"])
        self.position = rest["position"]
        self.loader.load_state_dict(self.position)
        if self.schedule is not None:
            self.schedule.load_state_dict(rest["schedule"])
        self.rate = self._rate()
        return True

    def done(self) -> bool:
        """Whether all steps or epochs are done, or evaluations no longer get better."""
        progress = self.progress
        return (
            (self.steps is not None and progress.step >= self.steps)
            or (self.epochs is not None and progress.epoch >= self.epochs)
            or self.evaluations.exhausted(progress)
        )

    @contextmanager
    def saved_if_not_finite(self, group: Group) -> Iterator[None]:
        """On :class:`NonFinite`, save the state before the step, note its examples, and say where."""
        before = generators(self.accelerator.device)
        try:
            yield
        except NonFinite as error:
            step = self.progress.step + 1
            indices = [getattr(batch, "indices", None) for batch in group.batches]
            examples = [None if own is None else [int(i) for i in own] for own in indices]
            if self.accelerator.num_processes > 1:
                examples = gather_object(examples)
            set_generators(before, self.accelerator.device)
            self.record.write({"step": step, "stopped": str(error), "examples": examples})
            where = ""
            if self.record.directory is not None:
                folder = self.record.directory.path / f"nonfinite-{step:08d}"
                self._save(folder)
                where = f" The state before it is in {folder}."
            raise NonFinite(
                f"step {step}: {error}. Examples of its batches: {str(examples)[:2000]}.{where} Try a lower learning "
                "rate, a longer warm-up or max_grad_norm"
            ) from error

    def count(self, report: StepReport, group: Group) -> None:
        """A step is done."""
        progress = self.progress
        progress.step += 1
        progress.epoch += group.ends_epoch
        progress.tokens += report.tokens
        progress.since_log += 1
        for name, value in report.losses.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        self.position = group.position

    def log(self, report: StepReport) -> None:
        """Every ``log_every`` steps, a line of metrics: losses as means over them."""
        rate, self.rate = self.rate, self._rate()
        progress = self.progress
        if progress.step % self.log_every and not self.done():
            return
        means = {name: total / progress.since_log for name, total in progress.sums.items()}
        line: dict[str, Any] = {"step": progress.step, "epoch": progress.epoch, "loss": sum(means.values())}
        if len(means) > 1:
            names = _PRETRAINING if "next_sentence_label" in means else {}
            line |= {names.get(name, f"{name}_loss"): value for name, value in means.items()}
        line |= {"lr": rate, "grad_norm": report.grad_norm, "tokens": progress.tokens}
        if self.accelerator.scaler is not None:
            line["loss_scale"] = self.accelerator.scaler.get_scale()
        self.record.write({**line, "seconds_per_step": self.clock.lap() / progress.since_log})
        progress.sums, progress.since_log = {}, 0

    def evaluate(self, group: Group) -> None:
        """Where it is due, a line of metrics as ``evaluate`` gives them."""
        self.improved = False
        evaluations = self.evaluations
        if evaluations.evaluate is None or not evaluations.due(self.progress, group.ends_epoch, self.done()):
            return
        self.clock.pause()
        self.model.eval()
        with torch.no_grad():
            found = evaluations.evaluate(self.model, self.accelerator)
        metrics = {name: value.item() if hasattr(value, "item") else value for name, value in found.items()}
        if self.accelerator.num_processes > 1:
            (metrics,) = broadcast_object_list([metrics])  # all judge by the same numbers, to the last bit
        self.prepared.train()
        self.improved = evaluations.judge(self.progress, metrics)
        self.record.write({"step": self.progress.step, "epoch": self.progress.epoch, **metrics})
        if self.improved and self.record.checkpoints is None:
            self.best_weights = copy.deepcopy(state.model_state(self.model))
        self.clock.go_on()

    def save(self, group: Group) -> None:
        """Where it is due, a checkpoint."""
        checkpoints = self.record.checkpoints
        regular = group.ends_epoch if self.save_every is None else self.progress.step % self.save_every == 0
        if checkpoints is None or not (regular or self.improved or self.done()):
            return
        self.clock.pause()
        if self.record.directory is not None and self.accelerator.is_main_process:
            self.record.directory.synchronize()
        self._save(checkpoints.path(self.progress.step))
        if self.accelerator.is_main_process:
            checkpoints.remove_old(self.progress.best_step)
        self.clock.go_on()

    def finish(self) -> Progress:
        """Go back to the best weights, if any were judged, and write the model."""
        best = self.progress.best_step
        if best is not None and best != self.progress.step:
            if self.record.checkpoints is not None:
                checkpointing.load(self.record.checkpoints.path(best), self.accelerator, self.model)
            elif self.best_weights is not None:
                state.load_model(self.model, self.best_weights)
        self.record.end(self.model, state.model_state(self.model))
        return self.progress

    def _save(self, folder: Any) -> None:
        rest = {
            "progress": asdict(self.progress),
            "position": self.position,
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }
        checkpointing.save(folder, self.accelerator, self.model, self.optimizer, rest)

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])
