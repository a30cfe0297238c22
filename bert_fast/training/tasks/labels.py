"""Label names: found in the data, numbered, and asked for by what rows hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

MOST_NAMES = 10_000
"""More names than this are no labels: the column holds numbers or texts."""


def name_of(value: Any, column: str, names: Sequence[str]) -> str:
    """The label that a row's value names.

    Args:
        value: a string, or an integer: itself as a name, else the number of one of ``names``.
        names: the labels, where they are known; else empty, and every name is good.

    Raises:
        ValueError: it is neither, or no label.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"column {column!r} holds {value!r:.60}, but must hold a label: a string or an integer")
    name = str(value)
    if names and name not in names:
        if isinstance(value, int) and 0 <= value < len(names):
            return names[value]
        raise ValueError(f"column {column!r} holds the label {name!r:.60}, which is none of {_listed(names)}")
    if not name:
        raise ValueError(f"column {column!r} is empty, but must hold a label")
    return name


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:20]))
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"


def collected(found: Iterable[str], column: str) -> tuple[str, ...]:
    """The different names, in order: as numbers if all are whole numbers, else as strings.

    Raises:
        ValueError: there is none, or there are more than ``MOST_NAMES``.
    """
    names: set[str] = set()
    for name in found:
        names.add(name)
        if len(names) > MOST_NAMES:
            raise ValueError(f"column {column!r} holds more than {MOST_NAMES} different values: these are no labels")
    if not names:
        raise ValueError(f"no row holds a label in column {column!r}")
    numbers = all(name.lstrip("-").isdecimal() and str(int(name)) == name for name in names)
    return tuple(sorted(names, key=int) if numbers else sorted(names))


def id2label(names: Sequence[str]) -> dict[str, Any]:
    """What a config says about these labels."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Label names that a user gives: strings, each once. Raises ValueError otherwise."""
    if not isinstance(names, str):  # numbers in a file are names, too
        names = [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in names]
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"labels must be a list of names, not {names!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"labels must each be named once, not {list(names)!r}")
    return tuple(names)
