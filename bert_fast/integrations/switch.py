"""accelerate and restore: put a Live on every known encoder in a module, and take it off again."""

from typing import TypeVar

from torch import nn

from bert_fast import notices
from bert_fast.config import HIDDEN_POSITIONS, check_quantization
from bert_fast.integrations import invariant
from bert_fast.integrations.adapter import Unsupported, encoder_class
from bert_fast.integrations.attributes import InPlace
from bert_fast.integrations.invariant import InvariantMethods
from bert_fast.integrations.live import Live
from bert_fast.integrations.owners import verdict
from bert_fast.integrations.reading import Verdict
from bert_fast.integrations.table import adapter_of, known

_Module = TypeVar("_Module", bound=nn.Module)


def accelerate(
    module: _Module,
    *,
    hidden_positions: str | None = None,
    batch_invariant: bool = False,
    quantization: str | None = None,
) -> _Module:
    """Make every encoder in ``module`` that is known run on this package's packed encoder and kernels, in place.

    Args:
        module: a model of ``transformers`` or ``sentence-transformers``, a PEFT model, a pipeline's model, or any
            module that holds one. Its Parameters, classes, ``state_dict`` and hooks stay what they are.
        hidden_positions: "zero" leaves places that the attention mask hides uncomputed and returns zeros there;
            "exact" computes them as ``transformers`` does. By default "zero" where the encoder's owner is known not to
            read them (sequence classification, multiple choice, next sentence, and sentence embeddings of a
            SentenceTransformer's ``encode``), unless hidden states are asked for or a hook reads the encoder's output;
            "exact" elsewhere: an encoder by itself, token-level heads, every other ``output_value`` of ``encode``, a
            SentenceTransformer called as a module (in training, too: its token embeddings are handed out), and what is
            compiled. In a sequence whose every token is hidden, what attention sees is zeros.
        batch_invariant: what is computed for a sequence has the same bits for it alone, in any batch, at any place in
            it and with any padding, within one process and number of threads: the visible tokens' outputs and
            ``pooler_output``, the logits of heads of ``transformers`` (for the first place, or for visible ones), the
            scores of a CrossEncoder and the sentence embeddings of a SentenceTransformer. The encoder has to be a
            post-norm one with GELU; it runs on CPU in float32 or bfloat16 without gradients; hidden places are zeros.
            What cannot hold that (a loss, a function or a module that is not known to) raises a RuntimeError, and no
            encoder runs its original code.
            Rows run in blocks of 64: MiniLM on 2 cores takes 1.15 (float32) to 1.35 times as long for 126 to 8,730
            tokens, and twice as long for a query of 7.
        quantization: "int8" runs the products of post-norm layers with GELU in int8, for inference on a CPU with
            AVX-512 VNNI: a scale for each token and for each output of a weight, kept beside the weights, which stay
            as they are. Elsewhere, and where a layer has to be called, they run as they do without, with one warning.

    Returns:
        ``module``. Calls that the packed encoder cannot carry run the original code, with one warning a reason.
        Accelerating it again forgets what was derived from its weights, and looks anew at who reads the encoders.

    Raises:
        TypeError: not a module.
        ValueError: no known encoder in it, or an unknown ``hidden_positions`` or ``quantization``; with
            ``batch_invariant`` also "exact", ``quantization``, and a module whose encoder's reader is not known to look
            at visible places only.
        RuntimeError: ``batch_invariant`` of an encoder that cannot be accelerated.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    if hidden_positions is not None and hidden_positions not in HIDDEN_POSITIONS:
        raise ValueError(f"hidden_positions must be one of {HIDDEN_POSITIONS} or None, not {hidden_positions!r}")
    check_quantization(quantization, batch_invariant)
    found = [(path, part) for path, part in module.named_modules() if adapter_of(type(part)) is not None]
    if not found:
        raise ValueError(f"there is no encoder in this {type(module).__name__} that is known: {', '.join(known())}")
    if batch_invariant and hidden_positions == "exact":
        raise ValueError("batch_invariant=True needs hidden_positions='zero' (or None), not 'exact'")
    for part in module.modules():
        held = InPlace.of(part)
        if held is not None and not isinstance(held, Live) and isinstance(held, InvariantMethods) != batch_invariant:
            held.remove()
    if batch_invariant:
        hidden_positions = "zero"
        for path, _ in found:
            invariant.install(module, path)
    for path, encoder in found:
        positions, owner = verdict(module, path)
        if hidden_positions is not None:
            positions = Verdict(hidden_positions, "asked for")
        elif owner is not None and InPlace.of(owner.module) is not owner:
            owner.install()
        _accelerate(encoder, path, positions, hidden_positions is not None, batch_invariant, quantization)
    return module


def restore(module: _Module) -> _Module:
    """Undo :func:`accelerate` on every encoder in ``module``, exactly; a module without any stays as it is.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    for part in module.modules():
        held = InPlace.of(part)
        if isinstance(held, Live):
            held.forget()
        if held is not None:
            held.remove()
    return module


def lives(module: nn.Module) -> list[Live]:
    """What stands in for the forward of every accelerated encoder in ``module``: what it did, and why."""
    return [live for live in map(InPlace.of, module.modules()) if isinstance(live, Live)]


def _accelerate(
    encoder: nn.Module, path: str, positions: Verdict, asked: bool, batch_invariant: bool, quantization: str | None
) -> None:
    held = InPlace.of(encoder)
    if isinstance(held, Live):
        held.forget()
        held.positions, held.asked = positions, asked
        held.batch_invariant, held.quantization = batch_invariant, quantization
    elif "forward" in encoder.__dict__:
        _refused(encoder, path, "its forward was replaced on the instance", batch_invariant)
        return
    else:
        held = Live(encoder, positions, asked, batch_invariant, quantization).install()
    try:
        held.parts()
    except Unsupported as reason:
        _refused(encoder, path, str(reason), batch_invariant)


def _refused(encoder: nn.Module, path: str, reason: str, batch_invariant: bool) -> None:
    name = encoder_class(type(encoder)).__name__
    where = f" at {path!r}" if path else ""
    if batch_invariant:
        raise RuntimeError(f"batch_invariant=True cannot hold: {name}{where} is not accelerated: {reason}")
    notices.warn(f"bert_fast: {name}{where} is not accelerated: {reason}")
