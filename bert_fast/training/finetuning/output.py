"""Predictions as JSON lines: in the rows' order, in constant memory, complete or absent."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from bert_fast.io import atomic_file
from bert_fast.training.data import read_rows
from bert_fast.training.finetuning.ranks import Ranks
from bert_fast.training.finetuning.saved import FineTuned
from bert_fast.training.tasks import Record


def predict_file(
    tuned: FineTuned,
    source: Any,
    output: str | os.PathLike[str],
    *,
    keep: Sequence[str] | None = None,
    overwrite: bool = False,
    max_tokens: int | None = None,
    shared: bool = False,
    **reading: Any,
) -> int:
    """Write a line for each row of ``source``: what the task predicts, as JSON. Returns the number of rows.

    Args:
        source: whatever ``read_rows`` reads.
        output: a file, which appears when it is complete; "-" is standard output.
        keep: columns whose values the lines begin with; None: "id", where rows have it.
        overwrite: replace a file that is there.
        max_tokens: of a batch.
        shared: whether the processes of ``torch.distributed`` share the rows; all of them call this, the first writes.
        reading: ``read_rows``'s options.

    Raises:
        ValueError: the output is there already, or is the input; the model's numbers for a row are not finite.
        InputError: a row that cannot be read, with file and line. Nothing is written then.
    """
    kept: deque[Mapping[str, Any]] = deque()

    def read(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], Record]:
        missing = [name for name in keep or () if name not in row]
        if missing:
            raise ValueError(f"no column {missing[0]!r} to keep; there are {', '.join(map(repr, row))}")
        wanted = ("id",) if keep is None else keep
        return {name: row[name] for name in wanted if name in row}, tuned.task.record(row, labelled=False)

    def records() -> Iterator[Record]:
        for values, record in read_rows(source, **reading).map(read):
            kept.append(values)
            yield record

    ranks = Ranks.for_rows(source, shared)
    _check(source, output, overwrite)
    count = 0
    with _opened(output) if ranks.first else nullcontext() as file:
        for _, prediction in tuned.predictor(max_tokens, ranks)(records()):
            count += 1
            values = kept.popleft()
            both = [name for name in values if name in prediction]
            if both:
                raise ValueError(f"the column {both[0]!r} cannot be kept: predictions have a field of this name")
            try:
                line = json.dumps({**values, **prediction}, ensure_ascii=False, allow_nan=False, default=str)
            except ValueError:
                raise ValueError(f"row {count}: a number of the model's, or one to keep, is not finite") from None
            if file is not None:
                file.write(line + "\n")
    return count


def _check(source: Any, output: str | os.PathLike[str], overwrite: bool) -> None:
    path = Path(output)
    if str(output) == "-" or not path.exists():
        return
    sources = source if isinstance(source, (list, tuple)) else [source]
    if any(isinstance(s, (str, os.PathLike)) and Path(s).exists() and path.samefile(s) for s in sources):
        raise ValueError(f"{path} is the input itself")
    if not overwrite:
        raise ValueError(f"{path} is there already: --overwrite replaces it")


@contextmanager
def _opened(output: str | os.PathLike[str]) -> Iterator[TextIO]:
    if str(output) == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    with atomic_file(output) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        yield file
