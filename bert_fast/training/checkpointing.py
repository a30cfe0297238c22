"""Checkpoints of a run: each complete or not there, the newest and the best kept, one format for any processes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file
from torch import nn
from torch.optim import Optimizer

from bert_fast import io
from bert_fast.training import state
from bert_fast.training.randomness import generators, seed_all, set_generators

_NAME = re.compile(r"step-(\d{8,})")
_WEIGHTS, _REST = "model.safetensors", "training.pt"


class SaveError(OSError):
    """A checkpoint could not be written. The ones before it are as they were."""


class Checkpoints:
    """The folder ``checkpoints`` of a run.

    A checkpoint is a folder ``step-00001000``: ``model.safetensors`` and ``config.json``, which ``from_pretrained``
    loads, and ``training.pt``: optimizer, schedule, loss scale, generators and positions. It is written under another
    name, forced to disk and renamed, so that whatever has the name is complete.

    Args:
        folder: where; made when the first is saved.
        keep: how many of the newest stay, beside the best.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, ascending."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """The folder of one."""
        return self.folder / f"step-{step:08d}"

    def remove_unfinished(self) -> None:
        """Delete what processes left behind that were killed while they saved or deleted."""
        for left in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    def remove_old(self, best: int | None) -> None:
        """Delete all but the newest and the best; no half-deleted one is ever taken for complete."""
        for step in self.steps()[: -self.keep]:
            if step != best:
                doomed = io.temporary_sibling(self.path(step))
                self.path(step).rename(doomed)
                shutil.rmtree(doomed)


def save(folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, rest: dict[str, Any]) -> None:
    """Write a checkpoint; every process calls it, the first one writes.

    Args:
        folder: its name.
        model: unwrapped.
        rest: what else to hold: numbers, texts, tensors and containers of them. It may differ between processes.

    Raises:
        SaveError: on every process, if the first could not write.
    """
    weights, moved = state.model_state(model), state.optimizer_state(model, optimizer)
    mine = {"rest": rest, "generators": generators(accelerator.device)}
    of_all = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
    scaler = accelerator.scaler
    held = {"optimizer": moved, "processes": of_all, "scaler": None if scaler is None else scaler.state_dict()}
    _by_the_first(accelerator, lambda: _write(folder, model, weights, held))


def _write(folder: Path, model: nn.Module, weights: dict[str, torch.Tensor], held: dict[str, Any]) -> None:
    try:
        with io.atomic_directory(folder, force=True) as temporary:
            if hasattr(model, "refresh"):
                model.save_pretrained(temporary, state_dict=weights, max_shard_size="1000TB")
            else:
                held = {**held, "model": weights}
            torch.save(held, temporary / _REST)
    except Exception as error:  # safetensors and PyTorch have errors of their own for a full disk
        raise SaveError(
            f"the checkpoint {folder} could not be written: {' '.join(str(error).split())[:300]}. Earlier checkpoints "
            "are complete: make room, and the same command goes on from the newest"
        ) from error


def _by_the_first(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Run ``action`` in the main process; an error in it is raised in all: they would wait otherwise."""
    error: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            action()
        except SaveError as raised:
            error = [str(raised)]
            if accelerator.num_processes == 1:
                raise
    if accelerator.num_processes > 1:
        broadcast_object_list(error)
        if error[0] is not None:
            raise SaveError(error[0])


def load(
    folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Load a checkpoint into ``model`` (unwrapped), ``optimizer``, loss scale and generators; returns ``rest``.

    Without an optimizer only the model is loaded. With other processes than saved it, every one gets the first one's
    ``rest``, and those that have no generators of their own get new ones.

    Raises:
        ValueError: it is of another model or optimizer.
    """
    apart = (folder / _WEIGHTS).is_file()
    if apart:
        _load_model(folder, model, _readable(folder, lambda: load_file(folder / _WEIGHTS)))
        if optimizer is None:
            return {}
    held = _readable(folder, lambda: torch.load(folder / _REST, map_location="cpu", weights_only=True))
    if not apart:
        _load_model(folder, model, held["model"])
    if optimizer is None:
        return {}
    state.load_optimizer(model, optimizer, held["optimizer"])
    if accelerator.scaler is not None and held["scaler"] is not None:
        accelerator.scaler.load_state_dict(held["scaler"])
    processes, rank = held["processes"], accelerator.process_index
    if len(processes) == accelerator.num_processes:
        set_generators(processes[rank]["generators"], accelerator.device)
        return processes[rank]["rest"]
    set_generators(processes[0]["generators"], accelerator.device)
    seed_all(int(torch.randint(2**62, ()).item()) + rank)
    return processes[0]["rest"]


def _readable(folder: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # safetensors, pickle and PyTorch have errors of their own for a damaged file
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the checkpoint {folder} cannot be read: {said}. Without it, the run goes on from the one before"
        ) from error


def _load_model(folder: Path, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    try:
        state.load_model(model, weights)
    except RuntimeError as error:
        raise ValueError(f"{folder} is of another model: {' '.join(str(error).split())[:300]}") from error
