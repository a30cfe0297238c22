"""Decides, from names and shapes alone, which tensor of a checkpoint goes where in a model, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bert_fast.checkpoints import names
from bert_fast.checkpoints.source import CheckpointError
from bert_fast.checkpoints.translate import Translated

Shape = tuple[int, ...]


@dataclass
class LoadReport:
    """What became of the names of a checkpoint and of a model.

    Attributes:
        missing: the model's parameters that the checkpoint has no values for; they are freshly initialised.
        unexpected: the checkpoint's tensors that the model has no place for.
        mismatched: name, shape in the checkpoint and shape in the model, where they differ.
        tied: the model's names that share the parameter of another name, and that name.
        converted: the model's names whose tensors the checkpoint calls otherwise, and what it calls them.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The `output_loading_info` of `transformers`, and `tied_keys` and `converted_keys`."""
        return {
            "missing_keys": set(self.missing),
            "unexpected_keys": set(self.unexpected),
            "mismatched_keys": set(self.mismatched),
            "error_msgs": [],
            "tied_keys": dict(self.tied),
            "converted_keys": dict(self.converted),
        }


@dataclass(frozen=True)
class Plan:
    """For every parameter (by its first name in the model) the checkpoint's names that hold it; and the report."""

    sources: Mapping[str, Sequence[str]]
    report: LoadReport
    random: Sequence[str]
    """The parameters that no tensor of the checkpoint fits."""


def plan(checkpoint: Translated, model: Mapping[str, Shape], aliases: Mapping[str, Sequence[str]], prefix: str) -> Plan:
    """Match a checkpoint to a model.

    Args:
        checkpoint: under today's names, with or without `prefix` on the encoder's.
        model: the shape of every name in the model's state.
        aliases: every parameter's first name, and all its names, the first included. Tied names share a parameter.
        prefix: what the encoder's names begin with in a model with a head.

    Raises:
        CheckpointError: nothing of the checkpoint fits the model, or two of its tensors mean the same parameter.
    """
    report = LoadReport()
    found: dict[str, str] = {}
    for name in checkpoint.tensors:
        target = names.fit_prefix(name, model, prefix)
        if target not in model:
            report.unexpected.append(checkpoint.original[name])
            continue
        if target in found:
            both = f"{checkpoint.original[found[target]]} and {checkpoint.original[name]}"
            raise CheckpointError(f"{checkpoint.path}: {both} both mean {target}")
        found[target] = name
        if checkpoint.original[name] != target:
            report.converted[target] = checkpoint.original[name]
    if not found:
        some = ", ".join(list(checkpoint.original.values())[:5]) or "nothing"
        raise CheckpointError(f"{checkpoint.path} holds no tensor of this model; it has {some} ...")

    sources: dict[str, list[str]] = {}
    for first, group in aliases.items():
        report.tied.update((name, first) for name in group if name != first)
        shapes = {name: checkpoint.tensors[found[name]].shape for name in group if name in found}
        fitting = [found[name] for name, shape in shapes.items() if shape == model[first]]
        report.mismatched += [(name, shape, model[first]) for name, shape in shapes.items() if shape != model[first]]
        if fitting:
            sources[first] = fitting
        elif not shapes:
            report.missing.append(first)
    return Plan(sources, report, [first for first in aliases if first not in sources])
