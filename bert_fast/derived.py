"""Weights in another form for inference (fused qkv, packed for oneDNN), kept beside the model, never on it.

An entry lives as long as its module and is used only while its sources are the tensors it was made from. What PyTorch
tracks (storage, version counter, dtype, device) is compared on every use. A write through ``.data`` moves no version
counter, so a sample of the values is compared as well where the extension is there to do it in microseconds; whoever
changes single elements through ``.data`` calls ``model.refresh()``.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module_hooks

from bert_fast import extension
from bert_fast.ops.library import plain_tensors, traced

_SAMPLES = 64
_entries: "weakref.WeakKeyDictionary[nn.Module, dict[Hashable, _Entry]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class _Entry:
    value: Any
    sources: tuple[Tensor, ...]
    state: tuple


def derive(owner: nn.Module, key: Hashable, sources: Sequence[Tensor], build: Callable[[], Any]) -> Any:
    """What ``build()`` makes of ``sources``, from the cache of ``owner`` where they have not changed since."""
    state = tuple((s.data_ptr(), s._version, s.dtype, s.device) for s in sources), _fingerprint(sources)
    held = _entries.get(owner)
    entry = None if held is None else held.get(key)
    if entry is None or entry.state != state:
        # The detached sources stay referenced: a freed pointer could come back under another tensor.
        entry = _Entry(build(), tuple(s.detach() for s in sources), state)
        _entries.setdefault(owner, {})[key] = entry
    return entry.value


def trackable(sources: Sequence[Tensor]) -> bool:
    """Whether changes of ``sources`` can be seen: inference tensors count no versions, and samples need one stride."""
    return all(s.is_contiguous() and not s.is_inference() for s in sources)


def drop(model: nn.Module) -> None:
    """Forget every derived weight of ``model`` and its submodules."""
    if len(_entries):
        for module in model.modules():
            _entries.pop(module, None)


def allowed() -> bool:
    """Whether derived weights may be used now: no gradient, nothing traced, compiled, exported or captured."""
    return not (
        torch.is_grad_enabled()
        or traced()
        or _module_hooks._has_any_global_hook()
        # A graph would keep the address of what can be dropped, and what a capture makes is not there until replay.
        or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )


def plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``module`` is no more than what a ``kind`` with its weights computes, so that it need not be.

    Not so for a subclass, a replacement or a parametrised module, for hooks, and for an instance whose ``forward`` was
    replaced.
    """
    own = module.__dict__
    hooked = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    return (
        type(module) is kind
        and "forward" not in own
        and not hooked
        and (torch.compiler.is_compiling() or not _module_hooks._has_any_global_hook())
    )


def plain_linear(module: nn.Module) -> bool:
    """Whether calling ``module`` is no more than ``F.linear`` with its own, ordinary weight.

    Not so for LoRA and quantised layers either: there the weight alone is not what the module computes.
    """
    if not plain(module, nn.Linear):
        return False
    weight, bias = _held(module, "weight"), _held(module, "bias")
    return plain_tensors(weight) and (bias is None or plain_tensors(bias))


def plain_norm(module: nn.Module) -> bool:
    """Whether calling ``module`` is no more than LayerNorm over the last dimension with its own weight and bias."""
    if not plain(module, nn.LayerNorm):
        return False
    weight, bias = _held(module, "weight"), _held(module, "bias")
    return weight is not None and bias is not None and plain_tensors(weight, bias)


def _held(module: nn.Module, name: str) -> Tensor | None:
    """``getattr(module, name)``, which costs ten times as much where it is an ordinary parameter."""
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found


def _fingerprint(sources: Sequence[Tensor]) -> int:
    compiled = extension.module()
    on_host = [s for s in sources if s.device.type == "cpu" and s.is_contiguous()]
    if compiled is None or not on_host:
        return 0
    return compiled.fingerprint([s.data_ptr() for s in on_host], [s.nbytes for s in on_host], _SAMPLES)
