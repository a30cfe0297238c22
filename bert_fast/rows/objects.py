"""Rows of JSON: one object a line, an array of objects, or SQuAD's nested form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bert_fast.rows.columns import Columns
from bert_fast.rows.errors import Bad, InputError, Placed
from bert_fast.rows.files import File

_FIRST_LINE = 1 << 24  # bytes of it that are looked at


def json_lines(file: File, columns: Columns) -> Iterator[Placed]:
    """One object a line; blank lines are no rows, as in all readers of JSON lines."""
    with file.lines() as lines:
        for number, line in lines.placed():
            if isinstance(line, Bad):
                yield number, line
            elif line.strip():
                yield number, _row(line, columns)


def _row(line: str, columns: Columns) -> dict[str, Any] | Bad:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Bad(f"not JSON: {error}")
    if not isinstance(row, dict):
        return Bad(f"a JSON object is needed, not a {type(row).__name__}")
    picked = columns.pick(row)
    if "\\u" in line and not isinstance(picked, Bad):  # only an escape can make what UTF-8 cannot hold
        return _without_half_pairs(picked)
    return picked


def _without_half_pairs(row: dict[str, Any]) -> dict[str, Any] | Bad:
    for name, value in row.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return Bad(f"character {error.start} of {name!r} is half a surrogate pair, which is no character")
    return row


def json_file(file: File, columns: Columns) -> Iterator[Placed]:
    """A ``.json`` file, whichever form it has: an array of objects, SQuAD's, or one object a line after all."""
    if file.is_stdin:
        raise InputError("JSON cannot be read from standard input, where its form cannot be told: give jsonl or squad")
    try:
        with file.open() as opened:
            first = opened.readline(_FIRST_LINE).removeprefix(b"\xef\xbb\xbf").strip()
            more = opened.read(4096).strip()
    except (OSError, EOFError) as error:
        raise InputError(f"{file.name}: {error}") from None
    if first.startswith(b"{") and more and _is_json(first):
        return json_lines(file, columns)
    return squad(file, columns) if (first or more).startswith(b"{") else _array(file, columns)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _loaded(file: File) -> Any:
    try:
        if file.is_stdin:
            return json.loads(file.open().read())
        with file.open() as opened:
            return json.loads(opened.read().decode("utf-8-sig"))
    except (ValueError, RecursionError, EOFError) as error:
        raise InputError(f"{file.name}: not JSON: {error}") from None
    except OSError as error:
        raise InputError(f"{file.name}: {error}") from None


def _array(file: File, columns: Columns) -> Iterator[Placed]:
    rows = _loaded(file)
    if not isinstance(rows, list):
        raise InputError(f"{file.name}: an array of objects is needed, not a {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        good = isinstance(row, dict)
        yield f"row {number}", columns.pick(row) if good else Bad(f"an object is needed, not a {type(row).__name__}")


def squad(file: File, columns: Columns) -> Iterator[Placed]:
    """Questions of SQuAD 1.1 and 2.0, in the file's order; the file is loaded whole.

    A row is ``{"id", "title", "context", "question", "answers": {"text": [...], "answer_start": [...]}}``; a question
    without an answer has empty lists. An answer that does not stand in the context where it is said to is a bad row.
    """
    loaded = _loaded(file)
    articles = loaded.get("data") if isinstance(loaded, dict) else None
    if not isinstance(articles, list):
        raise InputError(f'{file.name}: not in SQuAD\'s form: an object with a list "data" is needed')
    for a, article in enumerate(articles, 1):
        try:
            title, paragraphs = article.get("title", ""), list(article["paragraphs"])
        except (KeyError, TypeError, AttributeError):
            yield f"article {a}", Bad('an article needs a list "paragraphs"')
            continue
        for p, paragraph in enumerate(paragraphs, 1):
            where = f"article {a}, paragraph {p}"
            try:
                context, questions = paragraph["context"], list(paragraph["qas"])
            except (KeyError, TypeError):
                yield where, Bad('a paragraph needs "context" and a list "qas"')
                continue
            for q, question in enumerate(questions, 1):
                row = _question(question, context, title)
                named = f" (id {row['id']!r})" if isinstance(row, dict) else ""
                yield f"{where}, question {q}{named}", row if isinstance(row, Bad) else columns.pick(row)


def _question(question: Any, context: Any, title: str) -> dict[str, Any] | Bad:
    try:
        answers = [] if question.get("is_impossible") else question.get("answers") or []
        texts = [answer["text"] for answer in answers]
        starts = [answer["answer_start"] for answer in answers]
        identity, asked = str(question["id"]), question["question"]
    except (KeyError, TypeError, AttributeError) as error:
        return Bad(f'a question needs "id", "question" and answers with "text" and "answer_start" ({error!r})')
    if not all(isinstance(text, str) for text in (context, asked, *texts)):
        return Bad("context, question and answers must be strings")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(start, int) or start < 0 or not context.startswith(text, start):
            return Bad(f"question {identity!r}: the answer {text[:40]!r} is not at character {start!r} of its context")
    found = {"text": texts, "answer_start": starts}
    return {"id": identity, "title": title, "context": context, "question": asked, "answers": found}
