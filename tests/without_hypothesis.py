"""A stand-in for hypothesis where it is not installed: its tests are skipped, and those beside them still run.

Without it a file that imports hypothesis could not be collected, and pytest would run nothing of any file.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

REASON = "hypothesis is not installed"


class _Anything:
    """Whatever is asked of it, called with or combined with, the answer is itself: strategies and what they draw."""

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):  # what Python itself asks for, which a strategy has not
            raise AttributeError(name)
        return self

    def _itself(self, *others: Any, **named: Any) -> _Anything:
        return self

    __call__ = __getitem__ = __or__ = __ror__ = _itself


class _Settings:
    """``settings(...)`` as a decorator, and its profiles."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __call__(self, test: Callable) -> Callable:
        return test

    @staticmethod
    def register_profile(*arguments: Any, **named: Any) -> None:
        pass

    load_profile = register_profile


def given(*strategies: Any, **named: Any) -> Callable[[Callable], Callable]:
    """A decorator that skips the test. Parameters that are not drawn stay, for parametrize and fixtures to fill."""

    def decorate(test: Callable) -> Callable:
        left = [parameter for name, parameter in inspect.signature(test).parameters.items() if name not in named]
        left = left[: len(left) - len(strategies)]  # positional strategies fill from the right

        @functools.wraps(test)
        def skipped(*arguments: Any, **filled: Any) -> None:
            pytest.skip(REASON)

        skipped.__signature__ = inspect.Signature(left)  # type: ignore[attr-defined]
        # Marked as well, so that no fixture is set up for it.
        return pytest.mark.skip(reason=REASON)(skipped)

    return decorate


def example(*arguments: Any, **named: Any) -> Callable[[Callable], Callable]:
    return lambda test: test


def stand_in() -> Any:
    """The module: three decorators that do what matters, and anything else that is asked for."""
    module: Any = types.ModuleType("hypothesis")
    module.strategies = types.ModuleType("hypothesis.strategies")
    for made in (module, module.strategies):
        made.__getattr__ = functools.partial(getattr, _Anything())
        made.__spec__ = importlib.machinery.ModuleSpec(made.__name__, None)  # importlib.util.find_spec wants one
    module.given, module.example, module.settings = given, example, _Settings
    return module


def install() -> None:
    """Put the stand-in where ``import hypothesis`` finds it, unless the real one is there."""
    try:
        importlib.import_module("hypothesis")
    except ModuleNotFoundError:
        sys.modules["hypothesis"] = module = stand_in()
        sys.modules["hypothesis.strategies"] = module.strategies
