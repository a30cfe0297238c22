"""What stands in for a module's forward: an attribute of the instance, which leaves its class alone."""

import inspect
from types import CodeType
from typing import Any, TypeVar

from torch import nn

_Self = TypeVar("_Self", bound="InPlaceOfForward")
_ATTRIBUTES = ("forward", "_replicate_for_data_parallel")


class InPlaceOfForward:
    """A callable that a module holds as its ``forward``; pickled and deep-copied with it.

    An attribute of the instance survives what wraps a module or changes its class, and whoever asks for the class, its
    name or ``isinstance`` finds what was there before.
    """

    removed = False

    def __init__(self, module: Any) -> None:
        self.module = module

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    @property
    def __code__(self) -> CodeType:
        # torch.export names the place of a module's forward by it.
        return self.original.__func__.__code__

    @property
    def original(self) -> Any:
        """The forward of the module's own class."""
        return type(self.module).forward.__get__(self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.original(*args, **kwargs)

    def replicate(self) -> nn.Module:
        """A replica for ``DataParallel``, which copies instance attributes: it runs its own code."""
        replica = type(self.module)._replicate_for_data_parallel(self.module)
        for name in _ATTRIBUTES:
            replica.__dict__.pop(name, None)
        return replica

    @staticmethod
    def of(module: nn.Module) -> "InPlaceOfForward | None":
        """What stands in for the forward of ``module``, also where somebody has wrapped that since; None if nothing."""
        held = getattr(module.__dict__.get(_ATTRIBUTES[1]), "__self__", None)
        return held if isinstance(held, InPlaceOfForward) and held.module is module else None

    def install(self: _Self) -> _Self:
        """Become the forward of the module."""
        self.module.__dict__.update(zip(_ATTRIBUTES, (self, self.replicate), strict=True))
        return self

    def remove(self) -> None:
        """Leave the module as it was; where somebody wrapped this object, it stays in there and calls the original."""
        self.module.__dict__.pop(_ATTRIBUTES[1], None)
        if self.module.__dict__.get("forward") is self:
            del self.module.__dict__["forward"]
        else:
            self.removed = True
