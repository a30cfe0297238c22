"""What stands in for methods of a module: attributes of the instance, which leave its class alone."""

import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

from torch import nn

_Self = TypeVar("_Self", bound="InPlace")
_REPLICATE = "_replicate_for_data_parallel"


class InPlace:
    """What a module holds in place of some of its methods, ``methods`` by name; pickled and deep-copied with it.

    An attribute of the instance survives what wraps a module or changes its class, and whoever asks for the class, its
    name or ``isinstance`` finds what was there before.
    """

    methods: tuple[str, ...] = ("forward",)
    removed = False

    def __init__(self, module: Any) -> None:
        self.module = module

    def originally(self, method: str) -> Any:
        """The method of the module's own class."""
        return getattr(type(self.module), method).__get__(self.module)

    def instead(self, method: str) -> Callable[..., Any]:
        """What stands in for ``method``."""
        raise NotImplementedError

    def replicate(self) -> nn.Module:
        """A replica for ``DataParallel``, which copies instance attributes: it runs its own code."""
        replica = type(self.module)._replicate_for_data_parallel(self.module)
        for name in (*self.methods, _REPLICATE):
            replica.__dict__.pop(name, None)
        return replica

    @staticmethod
    def of(module: nn.Module) -> "InPlace | None":
        """What stands in for methods of ``module``, also where somebody has wrapped that since; None if nothing."""
        held = getattr(module.__dict__.get(_REPLICATE), "__self__", None)
        return held if isinstance(held, InPlace) and held.module is module else None

    def install(self: _Self) -> _Self:
        """Become the methods of the module."""
        held = {name: self.instead(name) for name in self.methods}
        self.module.__dict__.update({**held, _REPLICATE: self.replicate})
        return self

    def remove(self) -> None:
        """Leave the module as it was; where somebody wrapped this object, it stays in there and calls the original."""
        self.module.__dict__.pop(_REPLICATE, None)
        for name in self.methods:
            if self.module.__dict__.get(name) == self.instead(name):
                del self.module.__dict__[name]
            else:
                self.removed = True


class InPlaceOfForward(InPlace):
    """A callable that a module holds as its ``forward``."""

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
        return self.originally("forward")

    def instead(self, method: str) -> Callable[..., Any]:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.original(*args, **kwargs)


class Instead:
    """One method of an :class:`InPlace` that stands in for several: calls ``holder.run(method, *args, **kwargs)``."""

    def __init__(self, holder: Any, method: str) -> None:
        self.holder, self.method = holder, method

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.holder.originally(self.method))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instead) and self.holder is other.holder and self.method == other.method

    def __hash__(self) -> int:
        return hash((id(self.holder), self.method))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.holder.run(self.method, *args, **kwargs)
