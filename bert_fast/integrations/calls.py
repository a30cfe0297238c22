"""What in one call of an encoder speaks against running it packed."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as _module_hooks

from bert_fast.ops.library import plain_tensors

# Arguments that say nothing to an encoder or are looked at elsewhere, and flags that do when they are set.
_IGNORED = frozenset(("use_cache", "return_dict", "num_items_in_batch", "output_hidden_states"))
_FLAGS = frozenset(("output_attentions", "output_cross_attentions", "is_causal", "debug_io"))


def against_state() -> str | None:
    """What is going on around the call that our code must not take part in; None if nothing is."""
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return "it is being traced or exported to ONNX"
    if not torch.compiler.is_compiling():
        if _module_hooks._has_any_global_hook():
            return "there are hooks on all modules"
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return "it runs inside torch.func"
    return None


def against_arguments(given: dict[str, Any], tensors: frozenset[str], names: tuple[str, ...], free: bool) -> str | None:
    """An argument that our code does not honour; None if there is none.

    Args:
        given: the call's arguments by name.
        tensors: those that the adapter honours.
        names: those that the original forward names; ``free``: whether it takes others.
    """
    for name, value in given.items():
        if name not in names and not free:
            return f"forward has no argument {name}"
        if value is None or name in tensors or name in _IGNORED:
            continue
        if name not in _FLAGS or value is not False:
            return f"the argument {name} was given"
    return None


def against_tensors(given: dict[str, Any], tensors: frozenset[str]) -> str | None:
    """What is wrong, or only theirs, with the tensors of a call; None if nothing is."""
    ids, embeds, mask = given.get("input_ids"), given.get("inputs_embeds"), given.get("attention_mask")
    if (ids is None) == (embeds is None):
        return "exactly one of input_ids and inputs_embeds has to be given"
    x, dims = (embeds, 3) if ids is None else (ids, 2)
    values = [given[name] for name in tensors if given.get(name) is not None]
    if not all(isinstance(value, Tensor) for value in values):
        return "an argument is no tensor"
    if x.dim() != dims:
        return f"the input has {x.dim()} dimensions, not {dims}"
    if mask is not None and mask.shape != x.shape[:2]:
        return f"the attention_mask is {list(mask.shape)}, not {list(x.shape[:2])}"
    if not torch.compiler.is_compiling():
        if not plain_tensors(*values) or any(value.is_meta for value in values):
            return "an argument is no ordinary tensor"
        if x.numel() == 0:
            return "the batch is empty"
    return None
