"""Reading texts one by one from text, JSON-lines, CSV, TSV and Parquet files, in constant memory.

Every reader keeps the order, gives one text per row (an empty one is a text too), and says file and line of what it
cannot read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bert_fast.rows.columns import Columns
from bert_fast.rows.errors import Bad, InputError, Placed
from bert_fast.rows.files import SUFFIXES as ALL_SUFFIXES
from bert_fast.rows.files import File
from bert_fast.rows.objects import json_lines
from bert_fast.rows.reading import text_lines
from bert_fast.rows.tables import Parquet, delimited, pyarrow

__all__ = ["FORMATS", "SUFFIXES", "InputError", "Source"]

FORMATS = ("text", "jsonl", "csv", "tsv", "parquet")
SUFFIXES = {suffix: kind for suffix, kind in ALL_SUFFIXES.items() if kind in FORMATS}


class Source:
    """An input and how far it has been read.

    Args:
        path: a file, or "-" for standard input (text only). A name ending in .gz is decompressed.
        kind: one of FORMATS; None tells by the suffix.
        field: the JSON field or the column that holds the text; None takes "text", or the only column.
    """

    def __init__(self, path: str | Path, kind: str | None = None, field: str | None = None) -> None:
        if kind is not None and kind not in FORMATS:
            raise InputError(f"format {kind!r}: allowed are {', '.join(FORMATS)}")
        self._file = File(path)
        self.is_stdin = self._file.is_stdin
        self.path = self._file.path
        self.field = field
        self.name = self._file.name
        self.kind = kind or self._file.format(SUFFIXES, "give --input-format")
        if self.is_stdin and self.kind == "parquet":
            raise InputError("Parquet cannot be read from standard input: give a file")
        if self.kind == "text" and field is not None:
            raise InputError(f"{self.name} is read as plain text, which has no field {field!r}")
        self._column = _TextColumn(field)
        self._parquet = Parquet(self._file, self._column) if self.kind == "parquet" else None
        self.unit = "rows" if self._parquet else "bytes"

    @property
    def total(self) -> int | None:
        """How many bytes or rows there are, in `unit`; None where that is not known (yet)."""
        return self._parquet.total if self._parquet else self._file.size

    def position(self) -> int:
        """How much has been read, in `unit`, of `total` (None if unknown)."""
        return self._parquet.done if self._parquet else self._file.position()

    def texts(self, skip: int = 0) -> Iterator[str]:
        """The texts from row `skip` on. Raises InputError at the first that cannot be read."""
        if self._parquet:
            yield from self._texts(self._parquet.rows(skip))
        else:
            yield from islice(self._texts(self._rows()), skip, None)

    def _rows(self) -> Iterator[Placed]:
        file, column = self._file, self._column
        if self.kind == "csv":
            return delimited(file, column, delimiter=",", quotes=True)
        if self.kind == "tsv":
            return delimited(file, column, delimiter="\t", quotes=False)
        return (text_lines if self.kind == "text" else json_lines)(file, column)

    def _texts(self, rows: Iterator[Placed]) -> Iterator[str]:
        for place, row in rows:
            if isinstance(row, Bad):
                raise self._file.fail(place, row.problem)
            if row["text"] is None:
                raise self._file.fail(place, f"column {self._column.found!r} is null")
            yield row["text"]


class _TextColumn(Columns):
    """The one column or field that holds the text, as a string: "text" where no name is given, or the only one."""

    def __init__(self, field: str | None) -> None:
        super().__init__({"text": field or "text"})
        self._field = field
        self.found = field or "text"

    def places(self, names: Sequence[str], source: str) -> dict[str, int]:
        if self._field is None and "text" not in names and len(names) == 1:
            return {"text": 0}
        return super().places(names, source)

    def of_schema(self, schema: Any, source: str) -> dict[str, int]:
        strings = [field.name for field in schema if _is_string(field.type)]
        if self._field is not None and self._field in schema.names and self._field not in strings:
            raise InputError(f"{source}: column {self._field!r} is {schema.field(self._field).type}, not string")
        self.found = strings[self.places(strings, source)["text"]]
        return {"text": schema.names.index(self.found)}

    def pick(self, row: dict[str, Any]) -> dict[str, Any] | Bad:
        name = self._field or "text"
        text = row.get(name)
        if isinstance(text, str):
            return {"text": text}
        return Bad(f"field {name!r} is {json.dumps(text)[:40]}, not a string") if name in row else super().pick(row)


def _is_string(kind: Any) -> bool:
    pa, _ = pyarrow("reading Parquet")
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"
