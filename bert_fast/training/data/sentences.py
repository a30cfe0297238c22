"""Documents of any source as one stream of sentences."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_fast.rows import InputError, read_rows
from bert_fast.rows.files import SUFFIXES, File


def sentences_of(documents: Any, text_field: str, on_bad_row: str) -> Iterator[str | None]:
    """Sentences, and None where a document ends."""
    paths = paths_of(documents)
    if paths is None:
        for number, document in enumerate(documents, 1):
            try:
                lines = _lines(document, text_field)
            except InputError as error:
                raise InputError(f"document {number}: {error}") from None
            yield from lines
            yield None
        return
    for path in paths:
        if _is_text(path):
            for row in read_rows(path, "text", on_bad_row=on_bad_row):
                yield row["text"] if row["text"].strip() else None
            yield None
        else:
            rows = read_rows(path, columns=[text_field], on_bad_row=on_bad_row)
            for lines in rows.map(lambda row: _lines(row, text_field)):
                yield from lines
                yield None


def _lines(document: Any, text_field: str) -> Iterable[str]:
    if isinstance(document, Mapping):
        if text_field not in document:
            raise InputError(f"no field {text_field!r}; there are {', '.join(map(repr, document))}")
        document = document[text_field]
    if isinstance(document, str):
        return document.split("\n")  # as lines of files end
    if not isinstance(document, (list, tuple)) or not all(isinstance(sentence, str) for sentence in document):
        raise InputError(f"a document is a text, a list of sentences or a row with one, not {document!r:.60}")
    return document


def paths_of(documents: Any) -> list[Path] | None:
    """The files that documents are to be read from; None if they are given as objects."""
    if isinstance(documents, (str, Path)):
        return [Path(documents)]
    if isinstance(documents, Mapping):
        raise InputError(f"documents cannot be a {type(documents).__name__}: give one of {', '.join(documents)}")
    listed = isinstance(documents, (list, tuple)) and bool(documents)
    if listed and all(isinstance(d, Path) or (isinstance(d, str) and _is_file(d)) for d in documents):
        return [Path(d) for d in documents]
    return None


def _is_file(name: str) -> bool:
    try:
        return os.path.isfile(name)
    except ValueError:  # a NUL in it
        return False


def _is_text(path: Path) -> bool:
    return File(path).format(SUFFIXES, "give one of these") == "text"
