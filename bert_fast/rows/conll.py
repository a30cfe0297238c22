"""Sentences of CoNLL files: one token a line, a blank line after each sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from bert_fast.rows.errors import Bad, Placed
from bert_fast.rows.files import File

_NO_WORD = re.compile(r"\d+[-.]\d+")  # a range of words, or a node that is no word
_DEFAULT = {"conll": {"tokens": 0, "labels": -1}, "conllu": {"tokens": 1, "labels": 3}}


def conll(file: File, kind: str, columns: Mapping[str, int] | None) -> Iterator[Placed]:
    """Rows of lists, such as ``{"tokens": [...], "labels": [...]}``, placed by their first line.

    Args:
        kind: "conll": columns parted by a tab, or, in a line without one, by any white space; a line that begins with
            -DOCSTART- is left out. "conllu": by tabs; comments (#), ranges (1-2) and empty nodes (1.1) are left out.
        columns: which list comes from which column, from 0, or from -1 backwards. None: the first and the last of
            "conll", forms and universal tags of "conllu".

    A line that lacks a column makes its sentence bad. Where a column is counted from the end, every line must have as
    many as the first: a token without a label would otherwise be its own.
    """
    wanted = _DEFAULT[kind] if columns is None else dict(columns)
    for name, column in wanted.items():
        if isinstance(column, bool) or not isinstance(column, int):
            raise ValueError(
                f"columns of CoNLL are numbers, such as {{'tokens': 0, 'labels': -1}}; {name!r}: {column!r}"
            )
    fixed = any(column < 0 for column in wanted.values())
    width: int | None = None
    with file.lines() as lines:
        sentence: dict[str, list[str]] = {name: [] for name in wanted}
        first, problem = 0, None
        for number, line in lines.placed():
            if not isinstance(line, Bad) and not line.strip():
                if first:
                    yield first, problem or sentence
                sentence, first, problem = {name: [] for name in wanted}, 0, None
                continue
            if isinstance(line, Bad):
                problem = problem or Bad(_at(number, line.problem))
                first = first or number
                continue
            fields = line.split("\t") if kind == "conllu" or "\t" in line else line.split()
            if _left_out(kind, line, fields):
                continue
            first = first or number
            if kind == "conllu" and not fields[0].isdecimal():
                problem = problem or Bad(
                    _at(number, f"a word's line begins with its number, not with {fields[0]!r:.40}")
                )
            width = width or len(fields)
            if fixed and len(fields) != width:
                problem = problem or Bad(_at(number, f"{len(fields)} columns, but the first token has {width}"))
            for name, column in wanted.items():
                if not -len(fields) <= column < len(fields) or not fields[column].strip():
                    problem = problem or Bad(_at(number, f"no column {column} for {name!r} in {line[:60]!r}"))
                else:
                    sentence[name].append(fields[column])
        if first:
            yield first, problem or sentence


def _at(number: int, problem: str) -> str:
    return f"(in line {number}) {problem}"


def _left_out(kind: str, line: str, fields: list[str]) -> bool:
    if kind == "conllu":
        return line.startswith("#") or _NO_WORD.fullmatch(fields[0]) is not None
    return line.startswith("-DOCSTART-")
