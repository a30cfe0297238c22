"""What a forward pass of a model runs on: per module and op the backend that was chosen, and why no other."""

import contextlib
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from bert_fast import backend, derived
from bert_fast.layers.projection import compute_dtype, packs
from bert_fast.ops.library import autocast_dtype

_LAYER = re.compile(r"(.*\blayer)\.(\d+)((?:\..*)?)$")
_KINDS: dict[str, type[nn.Module]] = {
    **dict.fromkeys(("query", "key", "value", "dense", "decoder", "seq_relationship"), nn.Linear),
    **dict.fromkeys(("classifier", "qa_outputs"), nn.Linear),
    "LayerNorm": nn.LayerNorm,
    **dict.fromkeys(("word_embeddings", "position_embeddings", "token_type_embeddings"), nn.Embedding),
}


@dataclass(frozen=True)
class Choice:
    """What one op of one module runs on.

    Attributes:
        module: its path in the model.
        op: such as "attention"; "linear" for a product with a layer's weight.
        backend: "triton", "cuda", "extension" (C++ on the CPU), "onednn" (packed weights) or "reference" (PyTorch's
            own ops, on a GPU with cuBLAS).
        against: why not on another, such as ``("triton: head dimension 20 is not a multiple of 8 from 8 to 128",)``.
    """

    module: str
    op: str
    backend: str
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Printed it is a page for people, :meth:`as_dict` is for programs.

    Attributes:
        model, device, dtype: what was explained: a class, "cuda:0" and "torch.bfloat16".
        mode: "inference" or "training", and whether gradients are taken.
        choices: in the order in which the ops run.
    """

    model: str
    device: str
    dtype: str
    mode: str
    choices: tuple[Choice, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as dictionaries, lists and strings."""
        return asdict(self)

    def __str__(self) -> str:
        reasons = list(dict.fromkeys(reason for choice in self.choices for reason in choice.against))
        rows = [
            (name, choice.op, choice.backend, " ".join(f"[{reasons.index(reason) + 1}]" for reason in choice.against))
            for name, choice in _joined(self.choices)
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        lines = [f"{self.model} on {self.device}, {self.dtype}, {self.mode}"]
        for *cells, notes in rows:
            padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            lines.append(f"  {padded}  {notes}".rstrip())
        return "\n".join([*lines, *(f"[{i}] {reason}" for i, reason in enumerate(reasons, 1))])


def explain(model: nn.Module, **inputs: Any) -> Explanation:
    """Run ``model`` once, as it is called here, and say what each of its ops ran on and why not on something faster.

    The mode of the model, gradients, autocast and :func:`bert_fast.use_backend` are those of the moment. The backward
    pass runs on what the forward chose. On a GPU the first run compiles kernels, as any first run does.

    Args:
        model: one of bert_fast's models.
        inputs: keywords of its forward pass, such as ``labels``; without ``input_ids`` or ``inputs_embeds``, two short
            texts of which one has padding.

    Raises:
        TypeError: it is no model of bert_fast's.
    """
    if not hasattr(model, "config") or type(model).__module__.partition(".")[0] != __name__.partition(".")[0]:
        raise TypeError(f"model must be one of bert_fast's, not {type(model).__module__}.{type(model).__name__}")
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    if not {"input_ids", "inputs_embeds"} & inputs.keys():
        inputs = {**_two_texts(model, parameter.device), **inputs}
    names = {id(module): name for name, module in model.named_modules()}
    heard: dict[tuple[str, str], Choice] = {}

    def listen(op: str, chosen: str, others: dict[str, list[str]]) -> None:
        against = tuple(f"{kernel}: {reason}" for kernel, found in others.items() for reason in found)
        name = _calling_module(names)
        heard[name, op] = Choice(name, op, chosen, against)

    with _unmoved_generators(parameter.device), backend.listening(listen):
        model(**inputs)
    choices = sorted([*heard.values(), *_called_or_multiplied(model, parameter)], key=_place(names.values()))
    gradients = "with gradients" if torch.is_grad_enabled() else "without gradients"
    mode = f"{'training' if model.training else 'inference'}, {gradients}"
    return Explanation(type(model).__name__, str(parameter.device), str(parameter.dtype), mode, tuple(choices))


def _two_texts(model: nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    length = min(8, model.config.max_position_embeddings)
    ids = torch.full((2, length), min(1, model.config.vocab_size - 1), device=device)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    texts = {"input_ids": ids, "attention_mask": mask}
    return {name: x[:, None] for name, x in texts.items()} if "MultipleChoice" in type(model).__name__ else texts


def _unmoved_generators(device: torch.device) -> contextlib.AbstractContextManager:
    """Dropout's draws leave the user's random numbers as they were."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _calling_module(names: dict[int, str]) -> str:
    """The innermost module of the model whose method is on the stack: hooks would change what runs."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if id(owner) in names and isinstance(owner, nn.Module):
            return names[id(owner)]
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _called_or_multiplied(model: nn.Module, parameter: torch.Tensor) -> Iterable[Choice]:
    """A row for every product, and for every other module that has to be called as it is."""
    x = parameter.new_empty(0, dtype=compute_dtype(parameter.dtype, parameter.device))
    for name, module in model.named_modules():
        kind = _KINDS.get(name.rpartition(".")[2])
        if kind is None:
            continue
        why = _why_called(module, kind)
        if kind is nn.Linear:
            why = why or _why_not_packed(module.weight, x)
            yield Choice(name, "linear", "reference" if why or x.device.type != "cpu" else "onednn", why)
        elif why:
            yield Choice(name, kind.__name__, "reference", why)


def _why_called(module: nn.Module, kind: type[nn.Module]) -> tuple[str, ...]:
    """Why its weight is not read directly; empty if it is."""
    if type(module) is not kind:
        return (f"called as it is: its type is {type(module).__name__}, not {kind.__name__}",)
    if not derived.plain(module, kind):
        return ("called as it is: it has hooks, or another forward",)
    if not derived.plain_tensors(*(p for p in module.parameters(recurse=False))):
        return ("called as it is: its weight is of a subclass of torch.Tensor",)
    return ()


def _why_not_packed(weight: torch.Tensor, x: torch.Tensor) -> tuple[str, ...]:
    """Why a plain layer's product on the CPU is not one with packed weights; empty if it is, and on other devices."""
    if x.device.type != "cpu" or packs(weight, x):
        return ()
    if torch.is_grad_enabled():
        return ("onednn: packed weights are for calls without gradients",)
    if autocast_dtype(x.device) is not None:
        return ("onednn: under autocast products are in its dtype",)
    if not derived.allowed():
        return ("onednn: PyTorch's ops are being traced, or a hook hears every module",)
    if backend.has_kernels(x.device):
        return ("onednn: Triton's interpreter runs",)
    return ("onednn: plain products were asked for (set_cpu_linear), or are faster here",)


def _place(names: Iterable[str]) -> Any:
    """Sorts by where modules stand in the model; what a module runs itself comes behind what it consists of."""
    order = {name: place for place, name in enumerate(names)}
    last = {name: max(order[other] for other in order if _within(other, name)) for name in order}
    return lambda choice: (last[choice.module], choice.op != "linear", choice.op)


def _within(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(outer + ".")


def _joined(choices: Iterable[Choice]) -> list[tuple[str, Choice]]:
    """Choices with the names to print: those that are the same in several layers once, as ``layer.0-11``."""
    layers: dict[tuple[str, str, Choice], list[int]] = {}
    for choice in choices:
        found = _LAYER.match(choice.module)
        before, behind = (found[1], found[3]) if found else (choice.module, "")
        key = (before, behind, Choice("", choice.op, choice.backend, choice.against))
        layers.setdefault(key, []).extend([int(found[2])] if found else [])
    return [
        (f"{before}.{_ranges(numbers)}{behind}" if numbers else before or "(the model)", choice)
        for (before, behind, choice), numbers in layers.items()
    ]


def _ranges(numbers: list[int]) -> str:
    text, start = [], numbers[0]
    for number, following in zip(numbers, [*numbers[1:], None], strict=True):
        if following != number + 1:
            text.append(str(start) if start == number else f"{start}-{number}")
            start = following if following is not None else start
    return ",".join(text)
