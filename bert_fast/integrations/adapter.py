"""Adapter: what this package must know of one architecture of `transformers`, so that one encoder can run them all."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from bert_fast.integrations import calls
from bert_fast.layers import BertEncoder
from bert_fast.packing import Layout

_Module = TypeVar("_Module", bound=nn.Module)


class Unsupported(Exception):
    """What in a module, or in one call of it, the packed encoder cannot carry: the original code runs instead."""


@dataclass
class Parts:
    """This package's modules around the leaves (linear layers, embeddings, norms, dropouts) of a module of theirs.

    Attributes:
        embeddings: called by :meth:`Adapter.embed`.
        encoder: called as :class:`bert_fast.layers.BertEncoder` is.
        twins: pairs of one of our modules and the one of theirs whose ``training`` it has to follow.
        extra: whatever else an adapter's methods want to find again.
    """

    embeddings: nn.Module
    encoder: BertEncoder
    twins: list[tuple[nn.Module, nn.Module]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Call:
    """One call of an encoder: its arguments by name (those that are None left out), and what follows from them.

    ``layout`` and :meth:`packed` are there from :meth:`Adapter.embed` on.
    """

    module: Any
    arguments: dict[str, Any]
    shape: tuple[int, int]
    device: torch.device
    layout: Layout | None = None

    @property
    def batch_invariant(self) -> bool:
        """Whether a sequence's bits must not depend on the rest of the batch."""
        return self.layout is not None and self.layout.batch_invariant

    def get(self, name: str) -> Any:
        """The argument, or None."""
        return self.arguments.get(name)

    def positions(self) -> Tensor:
        """``position_ids`` as given, ``[B, S]``, ``[1, S]`` or ``[S]``; else places counted from 0, ``[S]``."""
        given = self.get("position_ids")
        return torch.arange(self.shape[1], device=self.device) if given is None else given

    def packed(self, name: str, value: Tensor | None) -> Tensor | None:
        """``value [B, S, ...]`` (or ``[1, S, ...]``, ``[S]``) as packed rows.

        Raises:
            Unsupported: another shape.
        """
        if value is None:
            return None
        assert self.layout is not None
        batch, seqlen = self.shape
        if value.dim() == 1:
            value = value[None]
        if value.shape[0] not in (1, batch) or value.shape[1] != seqlen:
            raise Unsupported(f"{name} is {list(value.shape)}, not [{batch}, {seqlen}]")
        return self.layout.pack(value.expand(batch, *value.shape[1:]))


class Adapter(ABC):
    """One architecture: stateless; the table in ``table.py`` holds one instance of each.

    ``encoders``: the classes of ``transformers`` it knows, ``"module.Class"`` below ``transformers.models``.
    ``called``: the children that are called with the padded tensors they expect, so that hooks on them are fine.
    ``has_pooler``: whether the class has the attribute ``pooler``, be it None.
    ``counts_tokens``: whether positions are counted from the first token, not from the first place, be it padding.
    ``tensors``: the arguments a call may have that the packed encoder honours, beside the output flags.
    """

    encoders: ClassVar[tuple[str, ...]]
    called: ClassVar[tuple[str, ...]] = ("pooler",)
    has_pooler: ClassVar[bool] = False
    counts_tokens: ClassVar[bool] = False
    tensors: ClassVar[frozenset[str]] = frozenset(
        ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
    )

    @abstractmethod
    def build(self, module: Any) -> Parts:
        """Our modules around the leaves of ``module``. Must copy nothing and change nothing of ``module``.

        Raises:
            Unsupported: something in ``module`` that this encoder cannot carry, in words for the user.
        """

    @abstractmethod
    def embed(self, parts: Parts, call: Call, seed: Tensor | None) -> Tensor:
        """The embeddings' output as packed rows ``[T, H]``."""

    def check(self, module: Any) -> None:
        """Look at every call, after ``build``, at what can change without another module: the config.

        Raises:
            Unsupported: as ``build``.
        """
        reject_decoders(module.config)

    def against_mask(self, module: Any, mask: Tensor | None, shape: tuple[int, ...]) -> str | None:
        """Why only the original code knows what ``attention_mask`` means in a batch of ``shape``; None if ours does."""
        return calls.against_mask(mask, shape, module, encoder_class(type(module)).__module__, self.heads(module))

    def heads(self, module: Any) -> int:
        """N: the heads of a mask of 4 dimensions."""
        return module.config.num_attention_heads

    def layout(self, parts: Parts, call: Call, layout: Layout) -> Layout:
        """The layout that the layers see: a place to add scores (relative positions) to ``layout.bias``."""
        return layout

    def finish(self, parts: Parts, call: Call, rows: Tensor) -> Tensor:
        """What comes after the last layer, over packed rows: a final norm."""
        return rows

    def pooler(self, module: Any) -> Callable[[Tensor], Tensor] | None:
        """Their pooler, called with ``last_hidden_state [B, S, H]`` of which it reads the first place; or None."""
        return getattr(module, "pooler", None)

    @abstractmethod
    def output(self, last_hidden_state: Tensor, pooled: Tensor | None, hidden_states: Any) -> Any:
        """The output that their class returns; fields that were not asked for are None."""


def own(root: nn.Module, module: _Module) -> _Module:
    """``module`` itself, a part of ``root`` that is not called but read: it has to be of the same source file.

    Raises:
        Unsupported: it was replaced by another kind of module (an adapter, a wrapper, a user's own).
    """
    home = encoder_class(type(root)).__module__
    if type(module).__module__ != home:
        raise Unsupported(f"{type(module).__name__} (of {type(module).__module__}) stands where {home} has its own")
    return module


def encoder_class(kind: type) -> type:
    """The class that wrote the forward of ``kind``: a class of ``transformers`` below subclasses that wrappers make."""
    forward = kind.forward  # type: ignore[attr-defined]
    return next(c for c in reversed(kind.__mro__) if c.__dict__.get("forward") is forward)


def reject_decoders(config: Any) -> None:
    """Raise Unsupported for the config of what is no encoder."""
    for name in ("is_decoder", "add_cross_attention", "is_causal"):
        if getattr(config, name, False):
            raise Unsupported(f"config.{name} is set: only encoders are accelerated")
