"""A fine-tuned model with all that it takes to use it: its tokenizer and its task, saved and loaded as one folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bert_fast.models as models
from bert_fast.checkpoints.resolve import resolve
from bert_fast.config import BertConfig
from bert_fast.io import atomic_write
from bert_fast.tokenizer import UNLIMITED, Tokenizer
from bert_fast.training.data import Rows, read_rows
from bert_fast.training.finetuning.inference import Predictor
from bert_fast.training.finetuning.ranks import Ranks
from bert_fast.training.tasks import TASKS, Record, Task, task_from
from bert_fast.training.tasks.base import Prediction

TASK_FILE = "bert_fast_task.json"
_TASK_OF = {
    "BertForSequenceClassification": "classification",
    "BertForTokenClassification": "tokens",
    "BertForQuestionAnswering": "qa",
    "BertForMultipleChoice": "choice",
}
_BY_PROBLEM = {"regression": "regression", "multi_label_classification": "multilabel"}


@dataclass
class FineTuned:
    """A model that does a task; what :func:`bert_fast.training.finetune` returns and :meth:`load` reads.

    Attributes:
        model: one of ``bert_fast``'s, in evaluation mode.
        tokenizer: the model's.
        task: what it does, with its labels and the columns it reads.
        max_length: the most tokens of a sequence.
        metrics: of the best evaluation while it was trained; empty after :meth:`load`.
    """

    model: Any
    tokenizer: Tokenizer
    task: Task
    max_length: int
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, device: Any = None, dtype: Any = None, **options: Any
    ) -> FineTuned:
        """Read a run of ``bert-fast finetune``, the ``model`` in it, or a fine-tuned BERT of `transformers`.

        Args:
            folder: the run, or the model's folder. Without our own file of the task, the config says what it is.
            device, dtype: as ``from_pretrained`` takes them.
            options: of the task, in place of what was saved, such as ``text="review"``.

        Raises:
            ValueError: the folder holds no model of a task.
        """
        path = folder_of(folder)
        saved = _saved_task(path)
        max_length = saved.pop("max_length", None)
        task = task_from(saved.pop("task"), {**saved, **options})
        tokenizer = Tokenizer.from_pretrained(path)
        model = getattr(models, task.model_class).from_pretrained(path, device=device, dtype=dtype)
        labels = getattr(task, "labels", None)
        if labels is not None and len(labels) != model.config.num_labels:
            raise ValueError(f"{path} has {model.config.num_labels} labels, not {len(labels)}: {list(labels)!r:.200}")
        return cls(model, tokenizer, task, max_length or length_for(task, tokenizer, None))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write model, tokenizer and task into ``folder``; `transformers` reads all but the last."""
        self.model.save_pretrained(folder)
        self.save_beside(folder)

    def save_beside(self, folder: str | os.PathLike[str]) -> None:
        """Write what belongs to a model that is in ``folder`` already."""
        self.tokenizer.save_pretrained(Path(folder))
        text = json.dumps({**self.task.to_dict(), "max_length": self.max_length}, indent=2, ensure_ascii=False)
        atomic_write(Path(folder) / TASK_FILE, (text + "\n").encode())

    def predictor(self, max_tokens: int | None = None, ranks: Ranks | None = None) -> Predictor:
        """What runs the model over records."""
        return Predictor(self.model.eval(), self.task, self.tokenizer, self.max_length, max_tokens, ranks)

    def predict(
        self, rows: Any, *, max_tokens: int | None = None, shared: bool = False, **reading: Any
    ) -> Iterator[Prediction]:
        """A prediction for each row, one at a time, in order.

        Args:
            rows: whatever ``read_rows`` reads: a file, a list of dictionaries, ...
            max_tokens: of a batch.
            shared: whether the processes of ``torch.distributed`` share the rows: all of them call this with the same
                rows, each computes a part, and all get all predictions. False: this process does it alone.
            reading: ``read_rows``'s options.
        """
        records = self._records(rows, False, reading)
        predictor = self.predictor(max_tokens, Ranks.for_rows(rows, shared))
        return (prediction for _, prediction in predictor(records))

    def evaluate(
        self, rows: Any, *, max_tokens: int | None = None, shared: bool = False, **reading: Any
    ) -> dict[str, float]:
        """Scores over labelled rows. Arguments as of :meth:`predict`."""
        predictor = self.predictor(max_tokens, Ranks.for_rows(rows, shared))
        return predictor.evaluated(self._records(rows, True, reading))

    def _records(self, rows: Any, labelled: bool, reading: Mapping[str, Any]) -> Iterator[Record]:
        return iter(records_of(self.task, rows, labelled, reading))


def folder_of(run_or_model: str | os.PathLike[str]) -> Path:
    """The folder of a model: that in a run, or one given by its path or its name on the hub."""
    inside = Path(run_or_model) / "model"
    return resolve(inside if (inside / "config.json").is_file() else run_or_model)


def records_of(task: Task, rows: Any, labelled: bool, reading: Mapping[str, Any]) -> Rows:
    """The task's records of rows, as they are read; bad ones are named with file and line."""
    read = rows if isinstance(rows, Rows) else read_rows(rows, **reading)
    return read.map(lambda row: task.record(row, labelled))


def length_for(task: Task, tokenizer: Tokenizer, wanted: int | None) -> int:
    """``max_length`` as wanted, or the task's, or the model's.

    Raises:
        ValueError: more than the model has positions for, or no limit is known.
    """
    limit = tokenizer.model_max_length
    if wanted is None:
        wanted = min(task.default_length or limit, limit)
        if wanted >= UNLIMITED:
            raise ValueError("max_length must be given: no file of the model says how many tokens it takes")
    if not 1 <= wanted <= limit:
        raise ValueError(f"max_length must be 1 to {limit}, what the model takes, not {wanted}")
    return wanted


def _saved_task(path: Path) -> dict[str, Any]:
    """What the folder says of its task: our own file's content, or what the config of `transformers` amounts to."""
    file = path / TASK_FILE
    if file.is_file():
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        if not isinstance(saved, dict) or saved.get("task") not in TASKS:
            raise ValueError(f"{file} names no task; there are {', '.join(TASKS)}")
        return {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    config = BertConfig.from_pretrained(path)
    architectures = getattr(config, "architectures", None) or ["none"]
    name = _TASK_OF.get(architectures[0])
    if name is None:
        raise ValueError(
            f"{path} holds no fine-tuned model: it has no {TASK_FILE}, and its config names {architectures[0]}, which "
            f"is none of {', '.join(_TASK_OF)}"
        )
    if name == "classification":
        problem = config.problem_type or ("regression" if config.num_labels == 1 else "")
        name = _BY_PROBLEM.get(problem, name)
    labelled = "labels" in TASKS[name].options()
    return {
        "task": name,
        **({"labels": tuple(config.id2label[k] for k in range(config.num_labels))} if labelled else {}),
    }
