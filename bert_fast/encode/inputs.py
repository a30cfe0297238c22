"""Reading texts one by one from text, JSON-lines, CSV, TSV and Parquet files, in constant memory.

Every reader keeps the order, gives one text per row (an empty one is a text too), and says file and line of what it
cannot read.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

SUFFIXES = {
    ".txt": "text",
    ".text": "text",
    "": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
# The csv module's limit is process-wide; one unbalanced quote must not swallow a whole file into memory.
_FIELD_LIMIT = 1 << 24
_PARQUET_ROWS = 1024


class InputError(ValueError):
    """The input cannot be read. The message names the file and, where there is one, the line."""


class Source:
    """An input and how far it has been read.

    Args:
        path: a file, or "-" for standard input (text only). A name ending in .gz is decompressed.
        kind: one of FORMATS; None tells by the suffix.
        field: the JSON field or the column that holds the text; None takes "text", or the only column.
    """

    def __init__(self, path: str | Path, kind: str | None = None, field: str | None = None) -> None:
        self.is_stdin = str(path) == "-"
        self.path = Path(path)
        self.field = field
        self.name = "standard input" if self.is_stdin else str(path)
        self.kind = kind or ("text" if self.is_stdin else self._kind_by_suffix())
        if self.kind not in FORMATS:
            raise InputError(f"format {self.kind!r}: allowed are {', '.join(FORMATS)}")
        if self.is_stdin and self.kind == "parquet":
            raise InputError("Parquet cannot be read from standard input: give a file")
        if self.kind == "text" and field is not None:
            raise InputError(f"{self.name} is read as plain text, which has no field {field!r}")
        if not self.is_stdin and not self.path.is_file():
            raise InputError(f"no such file: {self.name}")
        self.total: int | None = None if self.is_stdin or self.kind == "parquet" else self.path.stat().st_size
        self.unit = "rows" if self.kind == "parquet" else "bytes"
        self._position: Callable[[], int] = lambda: 0

    def _kind_by_suffix(self) -> str:
        suffixes = [s.lower() for s in self.path.suffixes if s.lower() != ".gz"]
        suffix = suffixes[-1] if suffixes else ""
        if suffix not in SUFFIXES:
            known = ", ".join(s for s in SUFFIXES if s)
            raise InputError(f"{self.name}: the suffix {suffix!r} says no format ({known}); give --input-format")
        return SUFFIXES[suffix]

    def position(self) -> int:
        """How much has been read, in `unit`, of `total` (None if unknown)."""
        return self._position()

    def texts(self, skip: int = 0) -> Iterator[str]:
        """The texts from row `skip` on. Raises InputError at the first that cannot be read."""
        if self.kind == "parquet":
            yield from self._parquet(skip)
            return
        with self._open() as file:
            lines = _decoded(file, self.name)
            reader = {"text": _text, "jsonl": self._jsonl, "csv": self._csv, "tsv": self._tsv}[self.kind]
            yield from islice(reader(lines), skip, None)

    def _open(self) -> BinaryIO:
        if self.is_stdin:
            return sys.stdin.buffer
        raw = open(self.path, "rb")  # noqa: SIM115 - closed by texts()
        self._position = lambda: 0 if raw.closed else raw.tell()
        return _Gzip(raw) if self.path.suffix.lower() == ".gz" else raw  # type: ignore[return-value]

    def _fail(self, line: int, problem: str) -> InputError:
        return InputError(f"{self.name}, line {line}: {problem}")

    def _jsonl(self, lines: Iterator[str]) -> Iterator[str]:
        field = self.field or "text"
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue  # readers of JSON lines skip blank lines
            try:
                row = json.loads(line)
            except ValueError as error:
                raise self._fail(number, f"not JSON: {error}") from None
            if not isinstance(row, dict):
                raise self._fail(number, f"a JSON object is needed, not a {type(row).__name__}")
            if field not in row:
                raise self._fail(number, f"no field {field!r}; there are {', '.join(map(repr, row)) or 'none'}")
            if not isinstance(row[field], str):
                raise self._fail(number, f"field {field!r} is {json.dumps(row[field])[:40]}, not a string")
            if "\\u" in line:
                _check_surrogates(row[field], lambda problem, number=number: self._fail(number, problem))
            yield row[field]

    def _csv(self, lines: Iterator[str]) -> Iterator[str]:
        return self._table(csv.reader(lines, strict=True))

    def _tsv(self, lines: Iterator[str]) -> Iterator[str]:
        # Tab-separated text has no quoting: a lone quotation mark is a character like any other.
        return self._table(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))

    def _table(self, reader: Any) -> Iterator[str]:
        csv.field_size_limit(_FIELD_LIMIT)
        try:
            header = next(reader, None)
            if header is None:
                raise InputError(f"{self.name} is empty: a header line with the columns' names is needed")
            column = self._column(header)
            for row in reader:
                if not row:
                    if len(header) > 1:
                        continue  # a blank line, which csv readers skip
                    row = [""]
                if len(row) != len(header):
                    raise self._fail(reader.line_num, f"{len(row)} columns, but the header has {len(header)}")
                yield row[column]
        except csv.Error as error:
            raise self._fail(reader.line_num, str(error)) from None

    def _column(self, names: list[str]) -> int:
        wanted = self.field or ("text" if "text" in names or len(names) != 1 else names[0])
        if wanted not in names:
            raise InputError(f"{self.name}: no column {wanted!r}; there are {', '.join(map(repr, names))}")
        if names.count(wanted) > 1:
            raise InputError(f"{self.name}: {names.count(wanted)} columns are named {wanted!r}")
        return names.index(wanted)

    def _parquet(self, skip: int) -> Iterator[str]:
        pa, pq = _pyarrow("reading Parquet")
        try:
            file = pq.ParquetFile(self.path, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.name} is not a Parquet file that can be read: {error}") from None
        with file:
            strings = [f.name for f in file.schema_arrow if _is_string(pa, f.type)]
            if self.field is not None and self.field in file.schema_arrow.names and self.field not in strings:
                kind = file.schema_arrow.field(self.field).type
                raise InputError(f"{self.name}: column {self.field!r} is {kind}, not string")
            column = strings[self._column(strings)]
            self.total = file.metadata.num_rows
            done = 0
            self._position = lambda: done
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if done + rows <= skip:
                    done += rows
                    continue
                for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=[column], use_threads=False):
                    for text in batch.column(0).to_pylist():
                        done += 1
                        if done <= skip:
                            continue
                        if text is None:
                            raise InputError(f"{self.name}, row {done}: column {column!r} is null")
                        yield text


class _Gzip(gzip.GzipFile):
    """A decompressed file that closes the compressed one with itself."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        super().__init__(fileobj=raw, mode="rb")

    def close(self) -> None:
        super().close()
        self._raw.close()


def _decoded(file: BinaryIO, name: str) -> Iterator[str]:
    """Lines as str with their line ends; only `\\n` ends a line, as in every tool that counts lines."""
    lines = iter(file)
    for number in range(1, sys.maxsize):
        try:
            line = next(lines, None)
        except (OSError, EOFError) as error:
            raise InputError(f"{name}, after line {number - 1}: {error}") from None
        if line is None:
            return
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}, line {number}: not UTF-8 (byte {error.start}: {error.reason})") from None


def _text(lines: Iterator[str]) -> Iterator[str]:
    return (line.removesuffix("\n").removesuffix("\r") for line in lines)


def _check_surrogates(text: str, fail: Callable[[str], InputError]) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise fail(f"character {error.start} of the text is half a surrogate pair, which is no character") from None


def _is_string(pa: Any, kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"


def _pyarrow(purpose: str) -> tuple[Any, Any]:
    """(pyarrow, pyarrow.parquet); InputError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f'{purpose} needs pyarrow: pip install "bert-fast[parquet]"') from None
    return pyarrow, pyarrow.parquet
