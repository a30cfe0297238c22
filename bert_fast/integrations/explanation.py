"""explain for accelerated models: what their encoders run on, by the names that their own modules have."""

import inspect
import os
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

from torch import nn

from bert_fast import explanation
from bert_fast.explained import Choice, EncoderRecord, Explanation
from bert_fast.integrations.adapter import Parts, Unsupported
from bert_fast.integrations.live import Live
from bert_fast.integrations.reading import as_owner
from bert_fast.integrations.record import asking
from bert_fast.integrations.switch import lives
from bert_fast.layers import BertLayer

# What our layers call leaves, by the names under which explain knows their kinds.
_LIKE = {"qkv": "dense", "0": "dense", "1": "dense", "attention_norm": "LayerNorm", "norm": "LayerNorm"}


def explain(model: nn.Module, **inputs: Any) -> Explanation:
    """Run ``model`` once, as it is called here, and say what each of its ops ran on and why not on something faster.

    The mode of the model, gradients, autocast and :func:`bert_fast.use_backend` are those of the moment. The backward
    pass runs on what the forward chose. On a GPU the first run compiles kernels, as any first run does.

    Args:
        model: one of bert_fast's models, or what :func:`bert_fast.accelerate` was given: then its encoders are
            explained, with what their calls did so far (this one is not counted); what stands around them is as it was.
        inputs: keywords of its forward pass, such as ``labels``. Without any of a model's own, two short texts of which
            one has padding; where the forward takes no ``input_ids``, each encoder is called with them by itself.

    Raises:
        TypeError: it is neither.
    """
    found = lives(model) if isinstance(model, nn.Module) else []
    if not found:
        return explanation.explain(model, **inputs)
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    paths = {id(module): path for path, module in model.named_modules()}
    names = dict(paths)
    for live in found:
        with suppress(Unsupported):  # whose reason the call will tell
            names.update(_names_of_shells(live.parts(), names))
    with explanation.heard(names, parameter.device) as choices, asking() as asked:
        _run(model, found, inputs)
    rows = list(choices)
    for live in found:
        path = paths[id(live.module)]
        outcomes = [reason for record, reason in asked if record is live.record]
        rows += [
            Choice(path, "forward", "reference", (f"its own code runs: {reason}",))
            for reason in dict.fromkeys(outcomes)
            if reason is not None
        ]
        if None in outcomes:
            parts = live.parts()
            int8 = explanation.in_int8(parts.encoder, live.quantization, next(live.module.parameters()).device)
            rows = [*explanation.with_passes(rows, int8[0], names), *_products(live, parts, paths, *int8)]
    records = tuple(_record(live, paths[id(live.module)]) for live in found)
    return explanation.explanation_of(model, parameter, paths.values(), rows, records)


def _run(model: nn.Module, found: list[Live], inputs: dict[str, Any]) -> None:
    forward: Any = model.forward
    takes_ids = "input_ids" in inspect.signature(forward).parameters and hasattr(model, "config")
    if takes_ids and not {"input_ids", "inputs_embeds"} & inputs.keys():
        inputs = {**explanation.two_texts(model, next(model.parameters()).device), **inputs}
    if inputs:
        model(**inputs)
        return
    for live in found:
        encoder = live.module
        with as_owner() if live.positions.hidden_positions == "zero" else nullcontext():
            encoder(**explanation.two_texts(encoder, next(encoder.parameters()).device))


def _names_of_shells(parts: Parts, names: dict[int, str]) -> dict[int, str]:
    """Our modules by the module of theirs that they stand for: their twin, or what holds all leaves they stand on."""
    found = {id(ours): names[id(theirs)] for ours, theirs in parts.twins}
    twins = set(found.values())
    for part in (parts.embeddings, parts.encoder):
        for shell in part.modules():
            if id(shell) in names or id(shell) in found:
                continue
            leaves = [names[id(m)] for m in shell.modules() if id(m) in names and m._parameters]
            if leaves:
                common = os.path.commonpath([leaf.replace(".", "/") for leaf in leaves]).replace("/", ".")
                found[id(shell)] = leaves[-1] if common in twins or not common else common
    return found


def _products(
    live: Live, parts: Parts, paths: dict[int, str], quantized: list[BertLayer], not_quantized: tuple[str, ...]
) -> Iterator[Choice]:
    """A row for every product of the encoder, and for what has to be called as it is."""
    parameter = next(p for p in live.module.parameters() if p.is_floating_point())
    leaves, seen = [], set()
    for part in (parts.embeddings, parts.encoder):
        for name, module in part.named_modules():
            last = name.rpartition(".")[2]
            if id(module) in paths and id(module) not in seen and not isinstance(module, nn.Identity):
                leaves.append((paths[id(module)], _LIKE.get(last, last), module))
                seen.add(id(module))
    if id(parts.embeddings) in paths:
        against = ("called as it is: its parts are not those of the op",)
        yield Choice(paths[id(parts.embeddings)], "embeddings", "reference", against)
    called = {id(m) for name in live.adapter.called for m in _below(getattr(live.module, name, None))}
    for module in live.module.modules():
        if isinstance(module, nn.Linear) and id(module) in called:
            against = ("called as it is, with padded tensors",)
            yield Choice(paths[id(module)], "linear", "reference", against)
        elif isinstance(module, nn.Linear) and id(module) not in seen:
            leaves.append((paths[id(module)], "dense", module))
    yield from explanation.products_of(leaves, parameter, quantized, not_quantized)


def _below(module: Any) -> Iterator[nn.Module]:
    if isinstance(module, nn.Module):
        yield from module.modules()


def _record(live: Live, path: str) -> EncoderRecord:
    record = live.record
    return EncoderRecord(
        module=path,
        kind=type(live.module).__name__,
        accelerated=record.accelerated,
        own_code=dict(record.reasons),
        hidden_positions=live.positions.hidden_positions,
        why=live.positions.why,
        batches=len(record.batches),
        padding=record.padding(),
    )
