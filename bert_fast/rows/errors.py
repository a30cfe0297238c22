"""What cannot be read, and where."""

from typing import Any, NamedTuple


class InputError(ValueError):
    """The input cannot be read. The message names the file and, where there is one, the line."""


class BadLine(ValueError):
    """A line that cannot be decoded; the lines after it can."""


class Bad(NamedTuple):
    """What a reader gives in the place of a row that is not good."""

    problem: str


# What readers give: the row's place (a line's or row's number, or words), and the row or what is wrong with it.
Placed = tuple[int | str, dict[str, Any] | Bad]
