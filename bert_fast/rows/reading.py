"""read_rows: whatever holds rows, as dictionaries one after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bert_fast.rows.columns import Columns
from bert_fast.rows.conll import conll
from bert_fast.rows.errors import Bad, InputError, Placed
from bert_fast.rows.files import SUFFIXES, File
from bert_fast.rows.objects import json_file, json_lines, squad
from bert_fast.rows.tables import Parquet, delimited

FORMATS = (*dict.fromkeys(SUFFIXES.values()), "squad")
Row = dict[str, Any]
Source = str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]]


class Rows:
    """Rows as dictionaries, read anew by every ``for``, one at a time; made by :func:`read_rows`.

    Attributes:
        skipped: how many rows of the current pass (or the last one) were left out, with ``on_bad_row="skip"``.
        where: the place of the row that the current pass gave last, such as ``train.csv, line 7``.
    """

    def __init__(
        self, readers: Sequence[tuple[str, Callable[[], Iterator[Placed]]]], skip: bool, functions: tuple = ()
    ) -> None:
        self._readers, self._skip, self._functions = readers, skip, functions
        self.skipped = 0
        self.where = ""

    @property
    def name(self) -> str:
        """The files' names."""
        return ", ".join(name for name, _ in self._readers)

    def map(self, function: Callable[[Row], Any]) -> Rows:
        """Each row through ``function`` as it is read. A ValueError it raises makes the row a bad one, with its place.

        A KeyError or TypeError is a bug in the function, and passes through.
        """
        return Rows(self._readers, self._skip, (*self._functions, function))

    def __iter__(self) -> Iterator[Any]:
        self.skipped, first_problem = 0, ""
        for name, reader in self._readers:
            for place, value in reader():
                self.where = f"{name}, {f'line {place}' if isinstance(place, int) else place}"
                problem = value.problem if isinstance(value, Bad) else None
                cause = None
                if problem is None:
                    try:
                        for function in self._functions:
                            value = function(value)
                    except ValueError as error:
                        problem, cause = str(error), error
                if problem is None:
                    yield value
                    continue
                message = f"{self.where}: {problem}"
                if not self._skip:
                    raise InputError(message) from cause
                self.skipped += 1
                first_problem = first_problem or message
        if self.skipped:
            warnings.warn(f"{self.name}: skipped {self.skipped} bad rows; the first: {first_problem}", stacklevel=2)


def read_rows(
    source: Source,
    format: str | None = None,
    *,
    columns: Sequence[str] | Mapping[str, Any] | None = None,
    on_bad_row: str = "raise",
    header: bool | Sequence[str] = True,
    delimiter: str | None = None,
    quotes: bool | None = None,
) -> Rows:
    """The rows of a file, of several, or of any iterable of dictionaries, as a stream in constant memory.

    Args:
        source: a path ("-" is standard input, once), a list of paths, a `datasets.Dataset` or `IterableDataset`, any
            iterable of dictionaries, or a function without arguments that gives one. Names ending in .gz are
            decompressed.
        format: one of ``FORMATS``; None tells by the suffix:

            ========================= ======================================================================
            "text" (.txt)             ``{"text": line}``, blank lines included
            "jsonl" (.jsonl, .ndjson) an object a line
            "json" (.json)            an array of objects, SQuAD's form, or an object a line; loaded whole but
                                      for the last
            "csv", "tsv"              strings; fields of csv may be quoted, those of tsv are as they stand
            "parquet" (.parquet, .pq) the values as Python's; needs pyarrow
            "conll", "conllu"         ``{"tokens": [...], "labels": [...]}`` for each sentence
            "squad"                   ``{"id", "title", "context", "question", "answers"}`` for each question of
                                      SQuAD 1.1 or 2.0; loaded whole
            ========================= ======================================================================

        columns: which fields a row has: None for all, a list of names, or a mapping from the row's name to the file's.
            Of CoNLL: from the row's name to the column's number, such as ``{"tokens": 0, "labels": -1}``.
        on_bad_row: "raise" an :class:`InputError` that names file and line, or "skip" the row, count it in
            ``rows.skipped`` and warn once at the end. What is wrong with a whole file is an error always.
        header: of csv and tsv: True if the first line names the columns, else the columns' names.
        delimiter: of csv and tsv, in place of the comma or the tab.
        quotes: of csv and tsv: whether a quotation mark quotes a field; None: in csv it does, in tsv not.

    Raises:
        InputError: no such file, or a format that is unknown; while reading, whatever cannot be read.
        ValueError: an argument outside what is said above.
    """
    if on_bad_row not in ("raise", "skip"):
        raise ValueError(f"on_bad_row must be 'raise' or 'skip', not {on_bad_row!r}")
    if format is not None and format not in FORMATS:
        raise InputError(f"format {format!r}: allowed are {', '.join(FORMATS)}")
    skip = on_bad_row == "skip"
    paths = [source] if isinstance(source, (str, Path)) else source
    if isinstance(paths, (list, tuple)) and paths and all(isinstance(path, (str, Path)) for path in paths):
        table = {"header": header, "delimiter": delimiter, "quotes": quotes}
        files = [File(path) for path in paths]
        return Rows([(file.name, _reader(file, format, columns, table)) for file in files], skip)
    if format is not None:
        raise ValueError(f"format {format!r} is for files, not for a {type(source).__name__}")
    return Rows([(type(source).__name__, _Given(source, Columns(columns)))], skip)


def _reader(
    file: File, given: str | None, columns: Sequence[str] | Mapping[str, Any] | None, table: dict[str, Any]
) -> Callable[[], Iterator[Placed]]:
    kind = given or file.format(SUFFIXES, "give a format")
    if kind in ("conll", "conllu"):
        if columns is not None and not isinstance(columns, Mapping):
            raise ValueError(f"columns of CoNLL must be a mapping from names to numbers, not {columns!r}")
        return partial(conll, file, kind, columns)
    chosen = Columns(columns)
    if kind in ("csv", "tsv"):
        delimiter = table["delimiter"] or {"csv": ",", "tsv": "\t"}[kind]
        quotes = kind == "csv" if table["quotes"] is None else table["quotes"]
        return partial(delimited, file, chosen, delimiter=delimiter, quotes=quotes, header=table["header"])
    if kind == "parquet":
        return Parquet(file, chosen).rows
    readers = {"text": text_lines, "jsonl": json_lines, "json": json_file, "squad": squad}
    return partial(readers[kind], file, chosen)


def text_lines(file: File, columns: Columns) -> Iterator[Placed]:
    """``{"text": line}`` for each line, without its end."""
    names = list(columns.places(["text"], file.name))
    with file.lines() as lines:
        for number, line in lines.placed():
            yield number, line if isinstance(line, Bad) else dict.fromkeys(names, line)


class _Given:
    """Rows that are Python objects already."""

    def __init__(self, source: Any, columns: Columns) -> None:
        if isinstance(source, Mapping):
            raise InputError(f"rows cannot be read from a {type(source).__name__}: give one of {', '.join(source)}")
        if not callable(source) and not isinstance(source, Iterable):
            raise InputError(f"rows cannot be read from a {type(source).__name__}")
        self._source, self._columns = source, columns
        self._used_up = False

    def __call__(self) -> Iterator[Placed]:
        rows = self._source() if callable(self._source) else self._source
        iterator = iter(rows)
        if iterator is self._source:
            if self._used_up:
                raise InputError(f"a {type(rows).__name__} gives its rows once: pass a function that makes it anew")
            self._used_up = True
        for number, row in enumerate(iterator, 1):
            good = isinstance(row, Mapping)
            problem = Bad(f"a dictionary is needed, not a {type(row).__name__}")
            yield f"row {number}", self._columns.pick(dict(row)) if good else problem
