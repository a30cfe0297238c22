"""What in one call of an encoder speaks against running it packed."""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as _module_hooks

from bert_fast.ops.library import autocast_dtype, capturing, plain_tensors

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
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    if (ids is None) == (embeds is None):
        return "exactly one of input_ids and inputs_embeds has to be given"
    x, dims = (embeds, 3) if ids is None else (ids, 2)
    values = [given[name] for name in tensors if given.get(name) is not None]
    if not all(isinstance(value, Tensor) for value in values):
        return "an argument is no tensor"
    if x.dim() != dims:
        return f"the input has {x.dim()} dimensions, not {dims}"
    if not torch.compiler.is_compiling():
        if not plain_tensors(*values) or any(value.is_meta for value in values):
            return "an argument is no ordinary tensor"
        if x.numel() == 0:
            return "the batch is empty"
    return None


def against_mask(mask: Tensor | None, shape: tuple[int, ...], module: Any, home: str, heads: int) -> str | None:
    """Why only their code knows what this ``attention_mask`` means; None if ours does.

    Args:
        shape: ``(B, S)`` of the call.
        module: the encoder; ``home``: the name of the Python module of its class.
        heads: N.
    """
    if mask is None or mask.shape == shape:
        return None
    batch, seqlen = shape
    what = f"the attention_mask is {list(mask.shape)}"
    if mask.dim() != 4:
        return f"{what}, not {list(shape)}"
    allowed = ((1, batch), (1, heads), (1, seqlen), (seqlen,))
    if any(size not in sizes for size, sizes in zip(mask.shape, allowed, strict=True)):
        return f"{what}, not {[batch, heads, seqlen, seqlen]} or 1 in place of the first three"
    # It is what hands such a mask to the layers as it is; older code makes another of it, or raises.
    if not hasattr(sys.modules[home], "create_bidirectional_mask"):
        return f"{what}, which not every transformers takes as it is"
    dtype, attention = next(module.parameters()).dtype, getattr(module.config, "_attn_implementation", None)
    if autocast_dtype(mask.device) is not None:
        return f"{what}, under autocast"
    if mask.dtype == torch.bool:
        shows = attention in ("sdpa", "bert_fast") and getattr(module, "_supports_sdpa", False)
        return None if shows else f"{what} and bool, where {attention!r} attention adds masks to scores"
    if mask.dtype != dtype or attention not in ("eager", "sdpa", "bert_fast"):
        return f"{what} in {mask.dtype}, for {attention!r} attention in {dtype}"
    # Theirs takes a mean over keys that are all at the minimum; ours gives 0. To see it waits for the device.
    if torch.compiler.is_compiling() or capturing(mask.device):
        return f"{what} and is added, and nobody can look whether it hides every key from a query"
    if mask.is_meta or bool((mask.detach().amax(-1) <= torch.finfo(dtype).min / 2).any()):
        return f"{what} and hides every key from a query"
    return None


def additive(mask: Tensor, seqlen: int) -> Tensor:
    """A mask of 4 dimensions that ours carries, as what is added to the scores, ``[B or 1, N or 1, S, S]``."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    return mask.expand(-1, -1, seqlen, -1)
