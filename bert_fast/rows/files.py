"""Files as lines of text: decompressed, decoded, counted, one at a time."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from bert_fast.rows.errors import Bad, BadLine, InputError

SUFFIXES = {
    ".txt": "text",
    ".text": "text",
    "": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".conll": "conll",
    ".conllu": "conllu",
}


class File:
    """A file to read, or standard input, and how far it has been read.

    Args:
        path: a file, or "-" for standard input. A name ending in .gz is decompressed.

    Raises:
        InputError: there is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.is_stdin = str(path) == "-"
        self.path = Path(path)
        self.name = "standard input" if self.is_stdin else str(path)
        if not self.is_stdin and self.path.is_dir():
            raise InputError(f"{self.name} is a folder: give the files in it")
        if not self.is_stdin and not self.path.is_file():
            raise InputError(f"no such file: {self.name}")
        self.size = None if self.is_stdin else self.path.stat().st_size
        self.position: Callable[[], int] = lambda: 0

    def format(self, known: dict[str, str], hint: str) -> str:
        """The format that the suffix says, of ``known``; an InputError that ends in ``hint`` if it says none."""
        suffixes = [s.lower() for s in self.path.suffixes if s.lower() != ".gz"]
        suffix = "" if self.is_stdin or not suffixes else suffixes[-1]
        if suffix not in known:
            listed = ", ".join(s for s in known if s)
            raise InputError(f"{self.name}: the suffix {suffix!r} says no format ({listed}); {hint}")
        return known[suffix]

    def open(self) -> BinaryIO:
        """The decompressed bytes."""
        if self.is_stdin:
            return sys.stdin.buffer
        raw = open(self.path, "rb")  # noqa: SIM115 - closed by whoever opens the lines
        self.position = lambda: 0 if raw.closed else raw.tell()
        return _Gzip(raw) if self.path.suffix.lower() == ".gz" else raw  # type: ignore[return-value]

    def lines(self) -> Lines:
        """Its lines; to be used in a `with` block, which closes the file."""
        return Lines(self.open(), self.name)

    def fail(self, place: int | str, problem: str) -> InputError:
        """An error that names the file and the place in it."""
        return InputError(f"{self.name}, {f'line {place}' if isinstance(place, int) else place}: {problem}")


class Lines:
    """Lines as str with their line ends; only `\\n` ends a line, as in every tool that counts lines.

    Raises BadLine for a line that is not UTF-8, after which the next one can be asked for, and InputError where the
    file cannot be read on.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._raw = self._lines(file)
        self.number = 0  # of the last line, from 1

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = next(self._raw)
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise BadLine(_undecodable(error)) from None

    def placed(self) -> Iterator[tuple[int, str | Bad]]:
        """Each line, without its end, and its number; a Bad in the place of one that is not text."""
        encoding = "utf-8-sig"
        for line in self._raw:
            try:
                yield self.number, line.decode(encoding).removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                yield self.number, Bad(_undecodable(error))
            encoding = "utf-8"

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        try:
            for line in file:
                self.number += 1
                yield line
        except (OSError, EOFError) as error:
            raise InputError(f"{self._name}, after line {self.number}: {error}") from None


def _undecodable(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte {error.start}: {error.reason})"


class _Gzip(gzip.GzipFile):
    """A decompressed file that closes the compressed one with itself."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        super().__init__(fileobj=raw, mode="rb")

    def close(self) -> None:
        super().close()
        self._raw.close()
