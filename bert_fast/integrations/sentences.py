"""SentenceTransformer: whose ``encode`` hands out sentence embeddings, for which nobody reads hidden places.

Its forward hands the token embeddings out, too: whoever calls that may read every place.
"""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from types import NoneType
from typing import Any

from torch import nn

from bert_fast.integrations.attributes import InPlace, Instead
from bert_fast.integrations.reading import Verdict, as_owner

_LIBRARY = "sentence_transformers."
_RESULT = "sentence_embedding"
# Modules behind a Transformer that read token embeddings under the mask, or none.
_READ_MASKED = ("Pooling", "Normalize", "Dense", "Dropout", "LayerNorm")


class OwnerEncode(InPlace):
    """The ``encode`` of a SentenceTransformer: its own, and encoders know when only sentence embeddings are read.

    Attributes:
        paths: where those encoders are below ``module``.
    """

    # encode hands its batches to the second where the library's version has that; so do its worker processes.
    methods: tuple[str, ...] = ("encode", "_inference")

    def __init__(self, module: Any, paths: tuple[str, ...] = ()) -> None:
        super().__init__(module)
        self.paths = paths
        self.methods = tuple(name for name in OwnerEncode.methods if hasattr(type(module), name))

    def instead(self, method: str) -> Callable[..., Any]:
        return Instead(self, method)

    def run(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call ``method`` of the class, as an owner where the result is of sentence embeddings."""
        original = self.originally(method)
        known = not self.removed and self._only_embeddings(original, args, kwargs)
        with as_owner() if known else nullcontext():
            return original(*args, **kwargs)

    def _only_embeddings(self, original: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
        try:
            given = inspect.signature(original).bind(*args, **kwargs)
        except TypeError:  # which the call itself will raise
            return False
        given.apply_defaults()
        if given.arguments.get("output_value") != _RESULT:
            return False
        return all(against(self.module, path) is None for path in self.paths)


def of_library(module: nn.Module) -> bool:
    """Whether the class of ``module`` is of sentence-transformers."""
    return type(module).__module__.startswith(_LIBRARY)


def is_transformer(module: nn.Module) -> bool:
    """Whether ``module`` is the Transformer of that library, which holds an encoder."""
    return of_library(module) and type(module).__name__ == "Transformer"


def verdict(parents: list[nn.Module], path: str) -> tuple[Verdict, OwnerEncode | None]:
    """What is read of an encoder inside a Transformer module; and what has to stand in for its owner's ``encode``.

    Args:
        parents: the modules above the encoder, outermost first.
        path: the encoder's below the outermost.
    """
    owners = [d for d, m in enumerate(parents) if isinstance(m, nn.Sequential) and _home(m, "encode") is not None]
    if not owners:
        return Verdict("exact", "the Transformer module is not in a SentenceTransformer"), None
    owner, below = parents[owners[-1]], ".".join(path.split(".")[owners[-1] :])
    reason = against(owner, below)
    if reason is not None:
        return Verdict("exact", reason), None
    held = InPlace.of(owner)
    if isinstance(held, OwnerEncode) and not held.removed:
        held.paths = tuple(dict.fromkeys((*held.paths, below)))
    elif any(name in owner.__dict__ for name in OwnerEncode.methods):
        return Verdict("exact", f"the encode of {type(owner).__name__} was replaced"), None
    else:
        held = OwnerEncode(owner, (below,))
    return Verdict("zero", "encode's sentence embeddings are read under the mask"), held


def against(owner: nn.Module, path: str) -> str | None:
    """Why a sentence embedding may depend on hidden places of the encoder at ``path`` below ``owner``, or None."""
    for method in (*OwnerEncode.methods, "forward"):
        home = _home(owner, method)
        if home is not None and not home.startswith(_LIBRARY):
            return f"{method} of {type(owner).__name__} is not the library's own"
    way = _way(owner, path)
    for module in (owner, *way):
        name = type(module).__name__
        if module is not owner and not of_library(module):
            return f"{name} may read every place"
        if not isinstance(module.__dict__.get("forward"), (Instead, NoneType)):
            return f"the forward of {name} was replaced"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name} has a hook, which may read every place"
    behind = [module for module in way[1:] if type(module).__name__ != "Router"]
    if not behind or type(behind[0]).__name__ != "Pooling":
        return f"{type(owner).__name__} has no Pooling right behind its Transformer"
    for module in behind:
        reads = getattr(module, "module_input_name", _RESULT)
        if type(module).__name__ not in _READ_MASKED or reads != _RESULT:
            return f"{type(module).__name__} may read every place"
    return None


def _home(module: nn.Module, method: str) -> str | None:
    """The name of the Python module of the class that wrote a method, None if there is none."""
    return next((kind.__module__ for kind in type(module).__mro__ if method in kind.__dict__), None)


def _way(chain: Any, path: str) -> list[nn.Module]:
    """The modules of a chain that a batch passes from the one at ``path`` on; a Router, which holds chains, as one."""
    name, _, rest = path.partition(".")
    names = list(chain._modules)
    if name not in names:
        return []
    first, *others = (chain._modules[key] for key in names[names.index(name) :])
    if type(first).__name__ != "Router":
        return [first, *others]
    routes, _, rest = rest.partition(".")
    route, _, inner = rest.partition(".")
    return [*_way(first.get_submodule(f"{routes}.{route}"), inner), first, *others]
