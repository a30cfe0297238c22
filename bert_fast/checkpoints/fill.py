"""Builds a model without memory for its weights, and gives every parameter its values: read once, or initialised."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bert_fast.checkpoints.plan import Plan
from bert_fast.checkpoints.source import CheckpointError
from bert_fast.checkpoints.translate import Translated

ABSURD_RATIO = 16
"""Weights that are missing may take this many times the whole checkpoint, or a GiB, before it is called an error."""


_INITIALISE = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)


class WeightsOnMeta(TorchFunctionMode):
    """Modules constructed within get weights without memory, and no values for them are drawn.

    Layers make their weights with `torch.empty`, which is what this redirects. Constants, made by `torch.arange` and
    the like, are real at once, so that buffers that no checkpoint holds need no second construction.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        elif func in _INITIALISE or getattr(func, "__module__", "") == nn.init.__name__:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor  # torch works out the outcome's shape, slowly, and imports its compiler for it
        return func(*args, **kwargs)


def state_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Parameters and persistent buffers by every name they have; and all names of each, by its first."""
    state = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        groups.setdefault(id(value), []).append(name)
    return state, {group[0]: group for group in groups.values()}


@torch.no_grad()
def fill(model: Any, checkpoint: Translated, plan: Plan, *, dtype: torch.dtype, device: torch.device) -> None:
    """Give a model built under `WeightsOnMeta` its weights, on `device`; floating point ones as `dtype`.

    What the checkpoint lacks is initialised by `model._init_weights(module)`, or `module.reset_parameters()` for a kind
    of module that it leaves alone, from torch's random state. The largest tensors come first, so that their
    copies in the file are out of memory before the model is complete.

    Raises:
        CheckpointError: a tensor cannot be read, or what is missing is absurdly large.
    """
    state, aliases = state_of(model)
    absent = [name for name in aliases if name not in plan.sources]
    _refuse_absurd(checkpoint, [state[name] for name in absent], dtype)
    _initialise(model, {name: aliases[name] for name in absent}, state, dtype, device)
    for first in sorted(plan.sources, key=lambda name: -state[name].numel()):
        _load(model, checkpoint, plan.sources[first], aliases[first], state[first], dtype, device)
    model.to(device=device, dtype=dtype)  # constants, and parameters that were real from the start
    left = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    if left:
        raise CheckpointError(
            f"{type(model).__name__} has no values for {', '.join(left)}: they are no part of the checkpoint and "
            "are made with torch.empty; make constants with torch.zeros, torch.arange or torch.tensor"
        )


def _load(
    model: Any,
    checkpoint: Translated,
    sources: Sequence[str],
    targets: Sequence[str],
    old: Tensor,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    values = checkpoint.load(sources[0])
    if len(sources) > 1 and not all(torch.equal(values, checkpoint.load(other)) for other in sources[1:]):
        # Tied names with values of their own. Of biases, the decoder's is the one that counts; a decoder with weights
        # of its own is a model whose config forgot to say so.
        if targets[-1].endswith(".bias"):
            values = checkpoint.load(sources[-1])
        else:
            warnings.warn(
                f"{checkpoint.path}: {' and '.join(sources)} differ although the config ties them; they are loaded "
                "apart, and config.tie_word_embeddings is now False",
                stacklevel=5,
            )
            model.config.tie_word_embeddings = False
            for source, target in zip(sources, targets, strict=True):
                _assign(model, [target], _copied(checkpoint.load(source), old, dtype, device))
            return
    _assign(model, targets, _copied(values, old, dtype, device))


def _copied(values: Tensor, old: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    wanted = dtype if old.is_floating_point() else old.dtype
    copy = torch.empty(old.shape, dtype=wanted, device=device).copy_(values)
    return nn.Parameter(copy, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else copy


def _assign(model: nn.Module, targets: Sequence[str], value: Tensor) -> None:
    for name in targets:
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, value)


def _initialise(
    model: Any,
    absent: Mapping[str, Sequence[str]],
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Fresh values for the absent parameters. The others have no memory yet: initialising them changes nothing."""
    paths: set[str] = set()
    for first, group in absent.items():
        old = state[first]
        if isinstance(old, nn.Parameter) and old.is_meta:
            # NaN, because no initialisation leaves it behind
            blank = torch.full(old.shape, float("nan"), dtype=dtype, device=device)
            _assign(model, group, nn.Parameter(blank, requires_grad=old.requires_grad))
            paths |= {name.rpartition(".")[0] for name in group}
    owners = {path: module for path, module in model.named_modules() if path in paths}
    for module in owners.values():
        model._init_weights(module)
    for path, module in owners.items():
        if _has_nan(module) and hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if _has_nan(module):
            raise CheckpointError(
                f"{path} ({type(module).__name__}) is not in the checkpoint, and neither _init_weights nor "
                "reset_parameters gives it values"
            )


def _has_nan(module: nn.Module) -> bool:
    return any(bool(p.isnan().any()) for p in module.parameters(recurse=False) if not p.is_meta)


def _refuse_absurd(checkpoint: Translated, absent: Sequence[Tensor], dtype: torch.dtype) -> None:
    missing = sum(value.numel() * dtype.itemsize for value in absent)
    held = sum(info.nbytes for info in checkpoint.tensors.values())
    if missing > max(1 << 30, ABSURD_RATIO * held):
        raise CheckpointError(
            f"{checkpoint.path} has {held} bytes of weights and lacks {missing}: it does not belong to this config"
        )
