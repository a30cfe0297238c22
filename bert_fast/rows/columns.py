"""Which columns or fields of a row are wanted, and under which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bert_fast.rows.errors import Bad, InputError


class Columns:
    """All columns, some of them, or some under other names.

    Args:
        wanted: None for all; names; or a mapping from the new name to the name in the file.
    """

    def __init__(self, wanted: Sequence[str] | Mapping[str, str] | None = None) -> None:
        if isinstance(wanted, str):
            raise ValueError(f"columns must be a list of names or a mapping, not the string {wanted!r}")
        self.wanted = wanted if wanted is None or isinstance(wanted, Mapping) else {name: name for name in wanted}

    def places(self, names: Sequence[str], source: str) -> dict[str, int]:
        """Where the wanted columns stand among ``names``. Raises InputError for one that is missing or there twice."""
        wanted = {name: name for name in names} if self.wanted is None else self.wanted
        for name in wanted.values():
            if name not in names:
                raise InputError(f"{source}: no column {name!r}; there are {', '.join(map(repr, names))}")
            if list(names).count(name) > 1:
                raise InputError(f"{source}: {list(names).count(name)} columns are named {name!r}")
        return {new: names.index(name) for new, name in wanted.items()}

    def of_schema(self, schema: Any, source: str) -> dict[str, int]:
        """Where the wanted columns stand in an Arrow schema."""
        return self.places(schema.names, source)

    def pick(self, row: dict[str, Any]) -> dict[str, Any] | Bad:
        """The wanted fields of a row that is an object."""
        if self.wanted is None:
            return row
        for name in self.wanted.values():
            if name not in row:
                return Bad(f"no field {name!r}; there are {', '.join(map(repr, row)) or 'none'}")
        return {new: row[name] for new, name in self.wanted.items()}
