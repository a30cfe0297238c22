"""accelerate and restore: put a Live on every known encoder in a module, and take it off again."""

import warnings
from typing import TypeVar

from torch import nn

from bert_fast.config import HIDDEN_POSITIONS
from bert_fast.integrations.adapter import Unsupported, encoder_class
from bert_fast.integrations.attributes import InPlaceOfForward
from bert_fast.integrations.live import Live
from bert_fast.integrations.owners import OwnerForward, Verdict, verdict
from bert_fast.integrations.table import adapter_of, known

_Module = TypeVar("_Module", bound=nn.Module)


def accelerate(module: _Module, *, hidden_positions: str | None = None) -> _Module:
    """Make every encoder in ``module`` that is known run on this package's packed encoder and kernels, in place.

    Args:
        module: a model of ``transformers`` or ``sentence-transformers``, a PEFT model, a pipeline's model, or any
            module that holds one. Its Parameters, classes, ``state_dict`` and hooks stay what they are.
        hidden_positions: "zero" leaves places that the attention mask hides uncomputed and returns zeros there;
            "exact" computes them as ``transformers`` does. By default "zero" where the encoder's owner is known not to
            read them (sequence classification, multiple choice, next sentence, Pooling), unless hidden states are asked
            for or a hook reads the encoder's output; "exact" elsewhere: an encoder by itself, token-level heads, and
            what is compiled. In a sequence whose every token is hidden, what attention sees is zeros.

    Returns:
        ``module``. Calls that the packed encoder cannot carry run the original code, with one warning a reason.
        Accelerating it again forgets what was derived from its weights, and looks anew at who reads the encoders.

    Raises:
        TypeError: not a module.
        ValueError: no known encoder in it, or an unknown ``hidden_positions``.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    if hidden_positions is not None and hidden_positions not in HIDDEN_POSITIONS:
        raise ValueError(f"hidden_positions must be one of {HIDDEN_POSITIONS} or None, not {hidden_positions!r}")
    found = [(path, part) for path, part in module.named_modules() if adapter_of(type(part)) is not None]
    if not found:
        raise ValueError(f"there is no encoder in this {type(module).__name__} that is known: {', '.join(known())}")
    for path, encoder in found:
        positions, owner = verdict(module, path)
        if hidden_positions is not None:
            positions = Verdict(hidden_positions, "asked for")
        elif positions.hidden_positions == "zero" and owner is not None and "forward" not in owner.__dict__:
            OwnerForward(owner).install()
        _accelerate(encoder, path, positions, hidden_positions is not None)
    return module


def restore(module: _Module) -> _Module:
    """Undo :func:`accelerate` on every encoder in ``module``, exactly; a module without any stays as it is.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    for part in module.modules():
        held = InPlaceOfForward.of(part)
        if isinstance(held, Live):
            held.forget()
        if held is not None:
            held.remove()
    return module


def lives(module: nn.Module) -> list[Live]:
    """What stands in for the forward of every accelerated encoder in ``module``: what it did, and why."""
    return [live for live in map(InPlaceOfForward.of, module.modules()) if isinstance(live, Live)]


def _accelerate(encoder: nn.Module, path: str, positions: Verdict, asked: bool) -> None:
    held = InPlaceOfForward.of(encoder)
    if isinstance(held, Live):
        held.forget()
        held.positions, held.asked = positions, asked
    elif "forward" in encoder.__dict__:
        _warn(encoder, path, "its forward was replaced on the instance")
        return
    else:
        held = Live(encoder, positions, asked).install()
    try:
        held.parts()
    except Unsupported as reason:
        _warn(encoder, path, str(reason))


def _warn(encoder: nn.Module, path: str, reason: str) -> None:
    name = encoder_class(type(encoder)).__name__
    where = f" at {path!r}" if path else ""
    warnings.warn(f"bert_fast: {name}{where} is not accelerated: {reason}", RuntimeWarning, stacklevel=4)
