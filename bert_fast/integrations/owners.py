"""Whether what holds an encoder reads places that the attention mask hides.

Where it does not, those places are not computed (``"zero"``) while it is the owner that calls; else, and wherever this
is not known, every place is (``"exact"``): what a user reads must not change.
"""

from typing import Any

import torch
from torch import nn

from bert_fast.integrations import sentences
from bert_fast.integrations.attributes import InPlace, InPlaceOfForward
from bert_fast.integrations.reading import Verdict, as_owner
from bert_fast.integrations.table import adapter_of

# Modules that work on each place by itself.
_PLACEWISE = (nn.Linear, nn.Dropout, nn.LayerNorm)
# Heads of `transformers` that read the first place of every sequence and nothing else. That one is always computed.
_READS_FIRST = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")


class OwnerForward(InPlaceOfForward):
    """The forward of an owner that does not read hidden places: its own, and the encoder knows who calls."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or self.removed or strange_part(self.module) is not None:
            return self.original(*args, **kwargs)
        with as_owner():
            return self.original(*args, **kwargs)


def verdict(root: nn.Module, path: str) -> tuple[Verdict, InPlace | None]:
    """What the owner of the encoder at ``path`` below ``root`` ("" for root itself) reads.

    Returns:
        that, and what has to be installed on the owner, if anything, for the encoder to know that it calls.
    """
    parents = _parents(root, path)
    if not parents:
        return Verdict("exact", "the encoder itself was given: who reads its output is not known"), None
    if sentences.is_transformer(parents[-1]):
        return sentences.verdict(parents, path)
    owner = parents[-1]
    held = InPlace.of(owner)
    if "forward" in owner.__dict__ and not isinstance(held, OwnerForward):
        return Verdict("exact", f"the forward of {type(owner).__name__} was replaced"), None
    found = _verdict(owner)
    if found.hidden_positions == "exact":
        return found, None
    return found, held if isinstance(held, OwnerForward) else OwnerForward(owner)


def _verdict(owner: nn.Module) -> Verdict:
    kind = type(owner)
    if kind.__module__.startswith("transformers.models.") and kind.__name__.endswith(_READS_FIRST):
        strange = strange_part(owner)
        if strange is not None:
            return Verdict("exact", f"{type(strange).__name__} stands in {kind.__name__} and may read every place")
        others = summaries(owner)
        if not others:
            return Verdict("zero", f"{kind.__name__} reads the first place of every sequence only")
        return Verdict("exact", f"{kind.__name__} summarises by {others.pop()!r}")
    return Verdict("exact", f"{kind.__name__} may read every place")


def summaries(owner: nn.Module) -> set[str]:
    """How a head of `transformers` summarises a sequence, where it does so by more than its first place."""
    return {getattr(m, "summary_type", "first") for m in owner.modules()} - {"first"}


def strange_part(owner: nn.Module) -> nn.Module | None:
    """A user's own module beside the encoder in a head of `transformers`, which some heads hand every place."""
    if not type(owner).__module__.startswith("transformers.models."):
        return None
    for part in owner._modules.values():
        home = type(part).__module__
        known = part is None or type(part) in _PLACEWISE or home.startswith(("transformers.", "peft."))
        if not known and adapter_of(type(part)) is None:
            return part
    return None


def _parents(root: nn.Module, path: str) -> list[nn.Module]:
    """The modules above the one at ``path``, outermost first."""
    names = path.split(".") if path else []
    parents = [root]
    for name in names[:-1]:
        parents.append(parents[-1].get_submodule(name))
    return parents if names else []
