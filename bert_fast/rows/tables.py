"""Rows of CSV, TSV and Parquet files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from bert_fast.rows.columns import Columns
from bert_fast.rows.errors import Bad, BadLine, InputError, Placed
from bert_fast.rows.files import File

# The csv module's limit is process-wide; one unbalanced quote must not swallow a whole file into memory.
_FIELD_LIMIT = 1 << 24
_PARQUET_ROWS = 1024


def delimited(
    file: File, columns: Columns, *, delimiter: str, quotes: bool, header: bool | Sequence[str] = True
) -> Iterator[Placed]:
    """Rows of delimited text, values as strings, placed by the line they begin in.

    Args:
        quotes: whether a quotation mark quotes (fields may then run over lines), or is a character like any other.
        header: True: the first line names the columns. Names: there is no such line.

    A blank line is no row, unless there is a single column. Raises InputError for a header that does not fit, and for a
    quoted field that does not end, of which nobody can say how many rows it swallowed.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    quoting: Any = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    with file.lines() as lines:
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        if header is True:
            try:
                names = next(reader, None)
            except (csv.Error, BadLine) as error:
                raise file.fail(lines.number, str(error)) from None
            if names is None:
                raise InputError(f"{file.name} is empty: a header line with the columns' names is needed")
        else:
            names = list(header) if header else []
        places = columns.places(names, file.name)
        while True:
            first = lines.number + 1
            try:
                row = next(reader, None)
            except BadLine as error:
                yield lines.number, Bad(str(error))
                continue
            except csv.Error as error:
                if lines.number > first:
                    raise file.fail(first, f"{error} (a quotation mark that does not close?)") from None
                yield first, Bad(str(error))
                continue
            if row is None:
                return
            if not row:
                if len(names) > 1:
                    continue
                row = [""]
            if len(row) != len(names):
                yield first, Bad(f"{len(row)} columns, but the header has {len(names)}")
            else:
                yield first, {name: row[place] for name, place in places.items()}


class Parquet:
    """A Parquet file; its rows are read a few at a time, of the wanted columns only.

    Raises InputError where it is none, or pyarrow is not installed.
    """

    def __init__(self, file: File, columns: Columns) -> None:
        if file.is_stdin:
            raise InputError("Parquet cannot be read from standard input: give a file")
        self._file, self._columns = file, columns
        self.total: int | None = None
        self.done = 0

    def rows(self, skip: int = 0) -> Iterator[Placed]:
        """Rows from number ``skip`` on, placed by their number from 1."""
        pa, pq = pyarrow("reading Parquet")
        name = self._file.name
        try:
            opened = pq.ParquetFile(self._file.path, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{name} is not a Parquet file that can be read: {error}") from None
        with opened:
            schema = opened.schema_arrow
            places = self._columns.of_schema(schema, name)
            fields = list(dict.fromkeys(schema.names[place] for place in places.values()))
            self.total, self.done = opened.metadata.num_rows, 0
            for group in range(opened.num_row_groups):
                rows = opened.metadata.row_group(group).num_rows
                if self.done + rows <= skip:
                    self.done += rows
                    continue
                try:
                    batches = opened.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=fields, use_threads=False)
                    for batch in batches:
                        values = {new: batch.column(schema.names[place]).to_pylist() for new, place in places.items()}
                        for row in _transposed(values, batch.num_rows):
                            self.done += 1
                            if self.done > skip:
                                yield f"row {self.done}", row
                except (pa.ArrowException, OSError) as error:
                    raise InputError(f"{name}, after row {self.done}: {error}") from None


def _transposed(values: dict[str, list[Any]], rows: int) -> Iterator[dict[str, Any]]:
    if not values:
        yield from ({} for _ in range(rows))
    for row in zip(*values.values(), strict=True):
        yield dict(zip(values, row, strict=True))


def pyarrow(purpose: str) -> tuple[Any, Any]:
    """(pyarrow, pyarrow.parquet); InputError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f'{purpose} needs pyarrow: pip install "bert-fast[parquet]"') from None
    return pyarrow, pyarrow.parquet
