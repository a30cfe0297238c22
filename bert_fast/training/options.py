"""Options of a dataclass as users give them, in Python, by flags or in a file: is each of the type it is said to be?"""

from __future__ import annotations

import types
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMED = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "None"}
_MANY = {int: "integers", float: "numbers", str: "strings"}


def check_types(kind: type, values: Mapping[str, Any]) -> None:
    """Compare values with the annotations of a dataclass's fields of these names.

    An integer is a number; a tuple is as good as a list, and a string where a tuple of strings is wanted is for the
    class itself to judge, as are a tuple's strings.

    Raises:
        ValueError: a value of another type; the message names it, what it is, and what it may be.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} must be {_said(hints[name])}, not {value!r:.80}")


def check_at_least(least: int, values: Mapping[str, int | None]) -> None:
    """Raises ValueError for an integer below ``least``; None is none."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, (list, tuple)) and all(_fits(each, inner[0]) for each in value)
    if origin is tuple and inner[-1] is Ellipsis:
        return isinstance(value, (list, tuple, str))
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(inner) and all(map(_fits, value, inner))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(each, inner[1]) for key, each in value.items()
        )
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return isinstance(value, hint)


def _said(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_said(each) for each in inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is list:
        return f"a list of {_MANY[inner[0]]}"
    if origin is tuple:
        return f"a list of {_MANY[inner[0]]}" if inner[-1] is Ellipsis else f"{len(inner)} {_MANY[inner[0]]}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping of {_MANY[inner[0]]} to {_MANY[inner[1]]}"
    return _NAMED[hint]
