"""What a run is given: rows that are read several times, and what is to be known of them before training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from bert_fast.training.data import Rows, read_rows
from bert_fast.training.finetuning.saved import FineTuned, records_of
from bert_fast.training.finetuning.settings import FinetuneSettings
from bert_fast.training.tasks import Task


def rows_of(name: str, source: Any, reading: Mapping[str, Any]) -> Rows:
    """Rows to be read several times. Raises ValueError for standard input, which gives its rows once."""
    files = source if isinstance(source, (list, tuple)) else [source]
    if any(isinstance(file, str) and file == "-" for file in files):
        raise ValueError(f"{name} is read more than once: give a file, not standard input")
    if isinstance(source, Iterator):
        source = list(source)
    return source if isinstance(source, Rows) else read_rows(source, **reading)


def check_evaluation(settings: FinetuneSettings, eval: Any) -> None:
    """Raises ValueError for a setting of evaluations where there are no rows for them."""
    for name in ("evaluate_every", "best_metric", "early_stopping"):
        if eval is None and getattr(settings, name) is not None:
            raise ValueError(f"{name} needs eval, rows to evaluate on")


def check_rows(tuned: FineTuned, held_out: Rows, best_metric: str) -> None:
    """Read the rows to evaluate on, and evaluate one: what is wrong with them is to be known before training.

    Raises:
        ValueError: there is none, or no such metric; InputError: a bad row, with file and line.
    """
    first, count = None, 0
    for record in records_of(tuned.task, held_out, True, {}):
        first, count = first or record, count + 1
    if first is None:
        raise ValueError(f"{held_out.name}: there are no rows to evaluate on")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a text that is cut; evaluation will say how many
        found = tuned.predictor().evaluated([first])
    name = best_metric.removeprefix("-")
    depends_on_rows = "/" in name or "_answer_" in name
    if name not in found and not depends_on_rows:
        raise ValueError(f"best_metric is {name!r}, but the evaluation gave {', '.join(sorted(found))}")


def described(
    task: Task, settings: FinetuneSettings, reading: Mapping[str, Any], model: Any, train: Any, eval: Any
) -> dict[str, Any]:
    """All options, as the run's ``config.json`` keeps them."""

    def named(rows: Any) -> Any:
        paths = rows if isinstance(rows, (list, tuple)) else [rows]
        files = all(isinstance(path, (str, os.PathLike)) for path in paths)
        return [str(path) for path in paths] if files else None if rows is None else type(rows).__name__

    given = {"model": str(model), "train": named(train), "eval": named(eval)}
    return {**task.to_dict(), **given, **asdict(settings), **reading}
