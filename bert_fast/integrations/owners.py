"""Whether what holds an encoder reads places that the attention mask hides.

Where it does not, those places are not computed (``"zero"``) while it is the owner that calls; else, and wherever this
is not known, every place is (``"exact"``): what a user reads must not change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import nn

from bert_fast.integrations.attributes import InPlaceOfForward
from bert_fast.integrations.table import adapter_of

# Heads of `transformers` that read the first place of every sequence and nothing else. That one is always computed.
_READS_FIRST = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")
# Modules of sentence-transformers that read token embeddings under the mask, or none.
_READS_MASKED = ("Pooling", "Normalize", "Dense", "Dropout", "LayerNorm")


_owner_calls: ContextVar[bool] = ContextVar("owner_calls", default=False)


def owner_calls() -> bool:
    """Whether the call comes from an owner that does not read hidden places; never so where a compiler traces."""
    return not torch.compiler.is_compiling() and _owner_calls.get()


@contextmanager
def as_owner() -> Iterator[None]:
    """Within the block, calls come from an owner that does not read hidden places."""
    token = _owner_calls.set(True)
    try:
        yield
    finally:
        _owner_calls.reset(token)


class Verdict(NamedTuple):
    """``hidden_positions``, and why in words."""

    hidden_positions: str
    why: str


class OwnerForward(InPlaceOfForward):
    """The forward of an owner that does not read hidden places: its own, and the encoder knows who calls."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or self.removed or _strange_part(self.module) is not None:
            return self.original(*args, **kwargs)
        with as_owner():
            return self.original(*args, **kwargs)


def verdict(root: nn.Module, path: str) -> tuple[Verdict, nn.Module | None]:
    """What the owner of the encoder at ``path`` below ``root`` ("" for root itself) reads; and that owner, if any."""
    parents = _parents(root, path)
    if not parents:
        return Verdict("exact", "the encoder itself was given: who reads its output is not known"), None
    owner = parents[-1]
    if "forward" in owner.__dict__ and not isinstance(InPlaceOfForward.of(owner), OwnerForward):
        return Verdict("exact", f"the forward of {type(owner).__name__} was replaced"), owner
    return _verdict(owner, parents), owner


def _verdict(owner: nn.Module, parents: list[nn.Module]) -> Verdict:
    kind = type(owner)
    if kind.__module__.startswith("transformers.models.") and kind.__name__.endswith(_READS_FIRST):
        strange = _strange_part(owner)
        if strange is not None:
            return Verdict("exact", f"{type(strange).__name__} stands in {kind.__name__} and may read every place")
        others = {getattr(m, "summary_type", "first") for m in owner.modules()} - {"first"}
        if not others:
            return Verdict("zero", f"{kind.__name__} reads the first place of every sequence only")
        return Verdict("exact", f"{kind.__name__} summarises by {others.pop()!r}")
    if kind.__module__.startswith("sentence_transformers.") and kind.__name__ == "Transformer":
        return _of_sentence_transformer(parents)
    return Verdict("exact", f"{kind.__name__} may read every place")


def _strange_part(owner: nn.Module) -> nn.Module | None:
    """A user's own module beside the encoder in a head of `transformers`, which some heads hand every place."""
    if not type(owner).__module__.startswith("transformers.models."):
        return None
    for part in owner._modules.values():
        home = type(part).__module__
        known = part is None or type(part) in (nn.Linear, nn.Dropout) or home.startswith(("transformers.", "peft."))
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


def _of_sentence_transformer(parents: list[nn.Module]) -> Verdict:
    transformer, names = parents[-1], [type(m).__name__ for m in parents]
    chain = parents[-2] if len(parents) > 1 else None
    if not isinstance(chain, nn.Sequential):
        return Verdict("exact", "the Transformer module is not in a chain whose readers are known")
    after = list(chain)[list(chain).index(transformer) + 1 :]
    if not after or type(after[0]).__name__ != "Pooling":
        return Verdict("exact", f"{names[-2]} has no Pooling right behind its Transformer")
    for module in after:
        known = type(module).__module__.startswith("sentence_transformers.") and type(module).__name__ in _READS_MASKED
        if not known:
            return Verdict("exact", f"{type(module).__name__} may read every place")
    return Verdict("zero", "Pooling reads under the mask")
