"""One step of training: gradients of the mean loss over all labels of a batch, whoever computes which part of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from bert_fast.training.devices import without_exchange
from bert_fast.training.losses import Loss


class NonFinite(RuntimeError):
    """A loss or gradient was infinite or not a number; nothing was moved. :func:`fit` saves the state before it."""


@dataclass(frozen=True)
class StepReport:
    """What a step was.

    Attributes:
        losses: each part's mean over its labels in all batches of all processes.
        grad_norm: the 2-norm of all gradients before they were clipped.
        tokens: in all batches of all processes, padding not counted where the batches say.
        skipped: whether the loss scale was too large for fp16, so that nothing was moved.
    """

    losses: dict[str, float]
    grad_norm: float
    tokens: int
    skipped: bool


class Stepper:
    """Takes steps with what Accelerate has prepared."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Any, loss: Loss, max_grad_norm: float | None
    ) -> None:
        self.accelerator, self.model, self.optimizer, self.loss = accelerator, model, optimizer, loss
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm

    def __call__(self, batches: Sequence[Mapping[str, Any]]) -> StepReport:
        """Move the parameters once by the mean over ``batches`` here and in all other processes.

        Raises:
            NonFinite: before anything was moved.
        """
        accelerator = self.accelerator
        counts = [{name: float(n) for name, n in self.loss.counts(batch).items()} for batch in batches]
        names = list(counts[0])
        mine = [sum(count[name] for count in counts) for name in names]
        tokens, *total = self._summed([float(sum(map(_tokens, batches))), *mine])
        wholes = dict(zip(names, total, strict=True))
        seen = torch.zeros(len(names), device=accelerator.device)
        for k, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            with without_exchange(accelerator, self.model, skip=k + 1 < len(batches)):
                parts = self.loss(self.model, send_to_device(batch, accelerator.device, non_blocking=True))
                shares = {name: count[name] / wholes[name] if wholes[name] else 0.0 for name in names}
                weighted = torch.stack([parts[name].float() * shares[name] for name in names])
                # The processes' gradients are averaged; their sum is wanted.
                accelerator.backward(weighted.sum() * accelerator.num_processes)
            seen += weighted.detach()
        # Here the host waits for the device, once a step: the price of never moving weights by a NaN.
        losses = dict(zip(names, self._summed(seen), strict=True))
        if not all(map(math.isfinite, losses.values())):
            raise NonFinite(f"the loss is {losses}")
        norm = float(accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm))
        if not math.isfinite(norm) and accelerator.scaler is None:
            raise NonFinite(f"the gradients' norm is {norm}, with a loss of {losses}")
        # Accelerate asks whether step() was called; Lamb and AdamW are called, and skip by themselves.
        scale = self._scale()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return StepReport(losses, norm, int(tokens), skipped=self._scale() < scale)

    def _scale(self) -> float:
        return 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()

    def _summed(self, values: list[float] | Tensor) -> list[float]:
        """Sums over all processes."""
        if self.accelerator.num_processes > 1:
            on_device = torch.as_tensor(values, dtype=torch.float32, device=self.accelerator.device)
            values = self.accelerator.reduce(on_device, "sum")
        return values.tolist() if isinstance(values, Tensor) else values


def _tokens(batch: Mapping[str, Any]) -> int:
    held = getattr(batch, "tokens", None)
    if held is not None:
        return held
    if "attention_mask" in batch:
        return int((batch["attention_mask"] != 0).sum())
    inputs = batch.get("input_ids")
    inputs = getattr(inputs, "input_ids", inputs)
    return 0 if inputs is None else inputs.numel()
