"""batch_invariant around encoders: heads of `transformers`, and what sentence-transformers makes of token embeddings.

Every module above an encoder computes in :class:`bert_fast.layers.fixed_order.FixedOrder`, whose own code it stays.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from bert_fast.integrations import sentences
from bert_fast.integrations.attributes import InPlace, Instead
from bert_fast.integrations.owners import strange_part, summaries
from bert_fast.layers.fixed_order import FixedOrder

# What heads compute of the first place, or of each place by itself. At hidden places they see zeros.
_HEADS = (
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
    "ForPreTraining",
)
# What sentence-transformers does with a result after the forward: it normalises embeddings, or takes sigmoids.
_AFTERWARDS = ("encode", "_inference", "predict")
_REPLACED = ("forward", *_AFTERWARDS)


class InvariantMethods(InPlace):
    """The forward of a module above encoders, and what is called in its place: its own, in a fixed order.

    Attributes:
        paths: where its encoders are below ``module``.
    """

    def __init__(self, module: Any, path: str) -> None:
        super().__init__(module)
        self.paths = [path]
        names = _AFTERWARDS if sentences.of_library(module) else ()
        self.methods = ("forward", *(name for name in names if hasattr(type(module), name)))

    def instead(self, method: str) -> Callable[..., Any]:
        return Instead(self, method)

    def run(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call ``method`` of the class in a fixed order.

        Raises:
            RuntimeError: something in it cannot be, or is not known to be, batch invariant.
        """
        original = self.originally(method)
        if self.removed or not self._held():
            return original(*args, **kwargs)
        reasons = [against(self.module, path) for path in self.paths]
        if kwargs.get("precision") in ("int8", "uint8"):
            reasons.append(f"precision={kwargs['precision']!r} takes its ranges from all of the texts")
        found = [reason for reason in reasons if reason is not None]
        if found:
            raise RuntimeError(f"batch_invariant=True cannot hold here: {found[0]}")
        with FixedOrder(type(self.module).__name__, strict=method == "forward"):
            return original(*args, **kwargs)

    def _held(self) -> bool:
        """Whether an encoder below is still to be batch invariant."""
        names = dict.fromkeys(self.paths)
        held = (InPlace.of(self.module.get_submodule(name)) for name in names)
        return any(getattr(live, "batch_invariant", False) for live in held)

    def replicate(self) -> nn.Module:
        raise RuntimeError("batch_invariant=True cannot hold here: DataParallel's replicas run their own code")


def install(root: nn.Module, path: str) -> None:
    """Make what stands above the encoder at ``path`` below ``root`` compute in a fixed order.

    Raises:
        ValueError: a module may make something else of the encoder's output.
        RuntimeError: the forward of one was replaced.
    """
    names = path.split(".") if path else []
    above = [(root.get_submodule(".".join(names[:n])), ".".join(names[n:])) for n in range(len(names))]
    for module, below in above:
        reason = against(module, below)
        if reason is not None:
            raise ValueError(f"batch_invariant=True cannot hold: {reason}; hand over the encoder inside, {path!r}")
        held = InPlace.of(module)
        if not isinstance(held, InvariantMethods) and any(name in module.__dict__ for name in _REPLACED):
            raise RuntimeError(f"batch_invariant=True cannot hold: the forward of {type(module).__name__} was replaced")
    for module, below in above:
        held = InPlace.of(module)
        if isinstance(held, InvariantMethods):
            held.paths = list(dict.fromkeys((*held.paths, below)))
        elif not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            InvariantMethods(module, below).install()


def against(module: nn.Module, path: str) -> str | None:
    """Why what ``module`` makes of the encoder at ``path`` below it cannot be batch invariant, or None."""
    kind = type(module)
    if kind.__module__.startswith("transformers.models.") and kind.__name__.endswith(_HEADS):
        strange = strange_part(module)
        if strange is not None:
            return f"{type(strange).__name__} stands in {kind.__name__} and may read hidden places, which are zeros"
        return f"{kind.__name__} summarises by {summaries(module).pop()!r}" if summaries(module) else None
    if sentences.is_transformer(module) or kind.__module__.startswith("peft."):
        return None
    if sentences.of_library(module):
        if kind.__name__ == "CrossEncoder":
            others = [m for m in module.children() if not (sentences.is_transformer(m) or isinstance(m, nn.Identity))]
            plain = all(hasattr(m, "config") or type(m).__module__.startswith("torch.") for m in others)
            return None if plain else f"{type(others[0]).__name__} may read hidden places, which are zeros"
        return sentences.against(module, path) if isinstance(module, nn.Sequential) else _unknown(module)
    return None if kind in (nn.Sequential, nn.ModuleDict, nn.ModuleList) else _unknown(module)


def _unknown(module: nn.Module) -> str | None:
    name = type(module).__name__
    return None if name == "Router" else f"{name} may read hidden places, which are zeros"
