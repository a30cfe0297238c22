"""What a forward pass of a model runs on: per module and op the backend that was chosen, and why no other."""

import contextlib
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from bert_fast import backend, derived
from bert_fast.explained import Choice, EncoderRecord, Explanation
from bert_fast.layers import BertLayer
from bert_fast.layers.projection import compute_dtype, packs
from bert_fast.layers.quantized import quantization_reasons
from bert_fast.ops.library import autocast_dtype

_KINDS: dict[str, type[nn.Module]] = {
    **dict.fromkeys(("query", "key", "value", "dense", "decoder", "seq_relationship"), nn.Linear),
    **dict.fromkeys(("classifier", "qa_outputs"), nn.Linear),
    "LayerNorm": nn.LayerNorm,
    **dict.fromkeys(("word_embeddings", "position_embeddings", "token_type_embeddings"), nn.Embedding),
}
# What layers whose modules are called do between their products.
_BETWEEN_PRODUCTS = ("layer_norm", "dropout_add_layer_norm", "bias_gelu")


def explain(model: nn.Module, **inputs: Any) -> Explanation:
    """:func:`bert_fast.explain` of one of bert_fast's own models.

    Raises:
        TypeError: it is none.
    """
    if not hasattr(model, "config") or type(model).__module__.partition(".")[0] != __name__.partition(".")[0]:
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise TypeError(f"model must be one of bert_fast's, or what bert_fast.accelerate was given, not {kind}")
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    if not {"input_ids", "inputs_embeds"} & inputs.keys():
        inputs = {**two_texts(model, parameter.device), **inputs}
    names = {id(module): name for name, module in model.named_modules()}
    with heard(names, parameter.device) as choices:
        model(**inputs)
    leaves = ((name, name, module) for name, module in model.named_modules())
    layers, why = in_int8(model, model.config.quantization, parameter.device)
    rows = [*with_passes(choices, layers, names), *products_of(leaves, parameter, layers, why)]
    return explanation_of(model, parameter, names.values(), rows)


def explanation_of(
    model: nn.Module,
    parameter: torch.Tensor,
    names: Iterable[str],
    choices: Iterable[Choice],
    encoders: tuple[EncoderRecord, ...] = (),
) -> Explanation:
    """The page of ``choices`` in the order of ``names``, those of the modules of ``model``."""
    ordered = tuple(sorted(choices, key=_place(names)))
    gradients = "with gradients" if torch.is_grad_enabled() else "without gradients"
    mode = f"{'training' if model.training else 'inference'}, {gradients}"
    return Explanation(type(model).__name__, str(parameter.device), str(parameter.dtype), mode, ordered, encoders)


@contextlib.contextmanager
def heard(names: dict[int, str], device: torch.device) -> Iterator[Collection[Choice]]:
    """Within the block, collect what each op of this thread chose; dropout's draws leave the user's generators be.

    Args:
        names: by the ``id`` of modules, what they are called.
    """
    found: dict[tuple[str, str], Choice] = {}

    def listen(op: str, chosen: str, others: dict[str, list[str]]) -> None:
        against = tuple(f"{kernel}: {reason}" for kernel, why in others.items() for reason in why)
        name = _calling_module(names)
        found[name, op] = Choice(name, op, chosen, against)

    with torch.random.fork_rng([device] if device.type == "cuda" else []), backend.listening(listen):
        yield found.values()


def two_texts(model: nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch of two short texts, of which one has padding, for a model with a ``config``."""
    config: Any = model.config
    length = min(8, getattr(config, "max_position_embeddings", 8))
    ids = torch.full((2, length), min(1, config.vocab_size - 1), device=device)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    texts = {"input_ids": ids, "attention_mask": mask}
    return {name: x[:, None] for name, x in texts.items()} if "MultipleChoice" in type(model).__name__ else texts


def _calling_module(names: dict[int, str]) -> str:
    """The innermost module of the model whose method is on the stack: hooks would change what runs."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if id(owner) in names and isinstance(owner, nn.Module):
            return names[id(owner)]
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def in_int8(
    model: nn.Module, quantization: str | None, device: torch.device
) -> tuple[list[BertLayer], tuple[str, ...]]:
    """The layers in ``model`` that run in int8 now, and why what is in no such layer does not, if it was asked."""
    if quantization is None:
        return [], ()
    reasons = quantization_reasons(device)
    if reasons:
        return [], tuple(f"int8: {reason}" for reason in reasons)
    layers = [module for module in model.modules() if isinstance(module, BertLayer) and module.quantized() is not None]
    return layers, ("int8: it is for whole post-norm layers with GELU, of plain modules",)


def with_passes(choices: Iterable[Choice], quantized: list[BertLayer], names: dict[int, str]) -> Iterator[Choice]:
    """``choices`` that were heard where modules were called, as they are where ``quantized`` layers run in int8.

    What lies between two of their products, GELU or residual and LayerNorm, the extension does as it rounds.

    Args:
        names: as of ``heard``.
    """
    passes = {}
    for layer in quantized:
        for half, op in (
            (layer.attention.output, "byte_add_layer_norm"),
            (layer.intermediate, "byte_gelu"),
            (layer.output, "byte_add_layer_norm"),
        ):
            if id(half) in names:
                passes[names[id(half)], op] = Choice(names[id(half)], op, "extension")
    halves = {name for name, _ in passes}
    yield from (choice for choice in choices if choice.module not in halves or choice.op not in _BETWEEN_PRODUCTS)
    yield from passes.values()


def products_of(
    modules: Iterable[tuple[str, str, nn.Module]],
    parameter: torch.Tensor,
    quantized: Collection[BertLayer] = (),
    not_quantized: tuple[str, ...] = (),
) -> Iterator[Choice]:
    """A row for every product, and for every other module that has to be called as it is.

    Args:
        modules: each with its path, and with what our layers call it.
        parameter: like those of the model.
        quantized, not_quantized: what ``in_int8`` says.
    """
    quantization = "int8" if quantized else None
    in_bytes = {id(part) for layer in quantized for part in layer.modules() if isinstance(part, nn.Linear)}
    x = parameter.new_empty(0, dtype=compute_dtype(parameter.dtype, parameter.device, quantization))
    for path, name, module in modules:
        kind = _KINDS.get(name.rpartition(".")[2])
        if kind is None:
            continue
        why = _why_called(module, kind)
        if id(module) in in_bytes:
            yield Choice(path, "linear", "onednn int8")
        elif kind is nn.Linear:
            why = why or _why_not_packed(module.weight, x)
            backend_name = "reference" if why or x.device.type != "cpu" else "onednn"
            yield Choice(path, "linear", backend_name, (*why, *not_quantized))
        elif why:
            yield Choice(path, kind.__name__, "reference", why)


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
