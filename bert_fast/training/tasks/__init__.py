"""What a model can be fine-tuned to do, one task a file, all with one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bert_fast.training.options import check_types
from bert_fast.training.tasks.base import Encoded, Record, Task
from bert_fast.training.tasks.choice import MultipleChoice
from bert_fast.training.tasks.classification import Classification
from bert_fast.training.tasks.multilabel import MultiLabel
from bert_fast.training.tasks.question_answering import QuestionAnswering
from bert_fast.training.tasks.regression import Regression
from bert_fast.training.tasks.tokens import TokenClassification

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (Classification, Regression, MultiLabel, TokenClassification, QuestionAnswering, MultipleChoice)
}


def task_from(name: str | Task, options: Mapping[str, Any] | None = None) -> Task:
    """A task by its name (one of ``TASKS``) and options; a task stays as it is.

    Raises:
        ValueError: there is no such task, it has no such option, or an option's value is not allowed.
    """
    options = dict(options or {})
    if isinstance(name, Task):
        if options:
            raise ValueError(f"a {type(name).__name__} has its options already; {', '.join(options)} cannot be added")
        return name
    if name not in TASKS:
        raise ValueError(f"task {name!r}: allowed are {', '.join(TASKS)}")
    kind = TASKS[name]
    unknown = [option for option in options if option not in kind.options()]
    if unknown:
        allowed = ", ".join(kind.options())
        raise ValueError(f"the task {name!r} has no option {', '.join(map(repr, unknown))}; it has {allowed}")
    check_types(kind, options)
    return kind(**options)


__all__ = [
    "TASKS",
    "Classification",
    "Encoded",
    "MultiLabel",
    "MultipleChoice",
    "QuestionAnswering",
    "Record",
    "Regression",
    "Task",
    "TokenClassification",
    "task_from",
]
