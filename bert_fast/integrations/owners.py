"""Whether what holds an encoder reads places that the attention mask hides.

Where it does not, those places are not computed (``"zero"``); else, and wherever this is not known, every place is
(``"exact"``): what a user reads must not change.
"""

from typing import NamedTuple

from torch import nn

# Heads of `transformers` that read the first place of every sequence and nothing else. That one is always computed.
_READS_FIRST = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")
# Modules of sentence-transformers that read token embeddings under the mask, or none.
_READS_MASKED = ("Pooling", "Normalize", "Dense", "Dropout", "LayerNorm")


class Verdict(NamedTuple):
    """``hidden_positions``, and why in words."""

    hidden_positions: str
    why: str


def verdict(root: nn.Module, path: str) -> Verdict:
    """What the owner of the encoder at ``path`` below ``root`` ("" for root itself) reads."""
    parents = _parents(root, path)
    if not parents:
        return Verdict("exact", "the encoder itself was given: who reads its output is not known")
    owner = parents[-1]
    kind = type(owner)
    if kind.__module__.startswith("transformers.models.") and kind.__name__.endswith(_READS_FIRST):
        others = {getattr(m, "summary_type", "first") for m in owner.modules()} - {"first"}
        if not others:
            return Verdict("zero", f"{kind.__name__} reads the first place of every sequence only")
        return Verdict("exact", f"{kind.__name__} summarises by {others.pop()!r}")
    if kind.__module__.startswith("sentence_transformers.") and kind.__name__ == "Transformer":
        return _of_sentence_transformer(parents)
    return Verdict("exact", f"{kind.__name__} may read every place")


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
