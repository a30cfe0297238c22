"""Fine-tuning all-MiniLM-L6-v2 to five tasks, beside transformers and its Trainer: scores and seconds.

    python -m benchmarks.finetune_tasks --data DIR --results FILE [--tasks imdb_cf ...] [--seeds 0 1 2] [--steps N]

Both train on the same examples with the same hyperparameters, and both models are scored by the same code: in float32
and, where this machine can, once more with their products in int8. Seconds are of the training steps alone. Every run
that is finished is a line of JSON in the results; started again, the script goes on with the runs that are missing, and
with none missing it prints the table. Results of runs with ``--steps`` only show that all of it works. DIR holds the
folders ``imdb_cf``, ``wnut17``, ``ud_ewt``, ``codah``, ``xquad_en``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

import bert_fast.models as models
from benchmarks.environment import environment
from bert_fast.demo.run import model_folder
from bert_fast.layers.quantized import quantization_reasons
from bert_fast.tokenizer import Tokenizer
from bert_fast.training import FineTuned, finetune
from bert_fast.training.data import Example, PackedCollator, read_rows
from bert_fast.training.tasks import Task, task_from

CONTENDERS = ("bert_fast", "transformers")


@dataclass(frozen=True)
class Subject:
    """A task on a data set: its rows, and the hyperparameters of both contenders."""

    task: str
    rows: Callable[[Path], tuple[list[dict], list[dict]]]
    score: str
    max_length: int
    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 1e-4
    options: dict[str, Any] = field(default_factory=dict)


def _imdb(data: Path) -> tuple[list[dict], list[dict]]:
    train, test = (list(read_rows(data / f"imdb_cf/orig_{part}.tsv", quotes=True)) for part in ("train", "test"))
    return train, test


def _wnut(data: Path) -> tuple[list[dict], list[dict]]:
    return list(read_rows(data / "wnut17/train.conll")), list(read_rows(data / "wnut17/test.conll"))


def _ewt(data: Path) -> tuple[list[dict], list[dict]]:
    train, test = (list(read_rows(data / f"ud_ewt/en_ewt-ud-{part}.conllu")) for part in ("dev", "test"))
    return train, test


_CODAH = ("category", "prompt", "ending0", "ending1", "ending2", "ending3", "label")


def _codah(data: Path) -> tuple[list[dict], list[dict]]:
    train, test = (list(read_rows(data / f"codah/fold_0_{part}.tsv", header=_CODAH)) for part in ("train", "test"))
    return train, test


def _xquad(data: Path) -> tuple[list[dict], list[dict]]:
    """Every fourth article is for the test."""
    rows = list(read_rows(data / "xquad_en/xquad.en.json"))
    titles = sorted({row["title"] for row in rows})
    held_out = set(titles[3::4])
    return [r for r in rows if r["title"] not in held_out], [r for r in rows if r["title"] in held_out]


SUBJECTS = {
    "imdb_cf": Subject("classification", _imdb, "accuracy", 256, options={"text": "Text", "label": "Sentiment"}),
    "wnut17": Subject("tokens", _wnut, "f1", 128, epochs=5),
    "ud_ewt": Subject("tokens", _ewt, "accuracy", 128, epochs=5),
    "codah": Subject("choice", _codah, "accuracy", 96, options={"text": "prompt", "choices": list(_CODAH[2:6])}),
    "xquad_en": Subject("qa", _xquad, "f1", 384, epochs=5),
}


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--steps", type=int, help="stop after so many, to try the script")
    parser.add_argument("--test-rows", type=int, help="score so many only, to try the script")
    options = parser.parse_args(arguments)
    done = {_key(result) for result in _results(options.results)}
    for seed in options.seeds:
        for name in options.tasks:
            for contender in options.contenders:
                wanted = {"task": name, "contender": contender, "seed": seed, "steps": options.steps}
                if _key(wanted) not in done:
                    result = _run(SUBJECTS[name], contender, seed, options)
                    _append(options.results, {**wanted, **result})
    print(table(_results(options.results), options.steps))
    return 0


def _run(subject: Subject, contender: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    train, test = subject.rows(options.data)
    test = test[: options.test_rows]
    trained = {"bert_fast": _ours, "transformers": _theirs}[contender]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*were longer than")
        tuned, seconds, steps = trained(subject, train, seed, options.steps)
    began = time.perf_counter()
    scores = tuned.evaluate(test)
    took = time.perf_counter() - began
    tuned.model.config.quantization = "int8"
    with torch.no_grad():
        runs = not quantization_reasons(tuned.model.device)
    in_int8 = tuned.evaluate(test)[subject.score] if runs else None
    return {
        "scores": scores,
        "score": scores[subject.score],
        "score_int8": in_int8,
        "metric": subject.score,
        "seconds": seconds,
        "steps_done": steps,
        "scoring_seconds": took,
        "environment": environment(),
    }


def _ours(subject: Subject, rows: list[dict], seed: int, steps: int | None) -> tuple[FineTuned, float, int]:
    lines: list[dict[str, Any]] = []
    tuned = finetune(
        subject.task,
        model_folder(),
        rows,
        epochs=subject.epochs,
        steps=steps,
        batch_size=subject.batch_size,
        learning_rate=subject.learning_rate,
        max_length=subject.max_length,
        seed=seed,
        callbacks=[lambda line: lines.append(dict(line))],
        **subject.options,
    )
    ends = [0, *(line["step"] for line in lines)]
    took = (line["seconds_per_step"] * (line["step"] - before) for line, before in zip(lines, ends, strict=False))
    return tuned, sum(took), ends[-1]


def _theirs(subject: Subject, rows: list[dict], seed: int, steps: int | None) -> tuple[FineTuned, float, int]:
    folder = model_folder()
    tokenizer = Tokenizer.from_pretrained(folder)
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in subject.options.items()}
    task = task_from(subject.task, options)
    task = task.learned(task.record(row) for row in rows)
    examples = _examples(task, rows, tokenizer, subject.max_length)
    transformers.set_seed(seed)
    model = getattr(transformers, task.model_class).from_pretrained(folder, dtype=torch.float32, **task.config())
    collate = PackedCollator(task.label_kind, padded=True, pad_token_id=tokenizer.pad_token_id)
    with tempfile.TemporaryDirectory() as place:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=place,
                num_train_epochs=subject.epochs,
                max_steps=-1 if steps is None else steps,
                per_device_train_batch_size=subject.batch_size,
                learning_rate=subject.learning_rate,
                warmup_steps=0.1,  # below 1: a share of all steps
                weight_decay=0.01,
                seed=seed,
                save_strategy="no",
                report_to=[],
                remove_unused_columns=False,
                disable_tqdm=True,
            ),
            train_dataset=examples,
            data_collator=lambda batch: dict(collate(batch)),
        )
        seconds = trainer.train().metrics["train_runtime"]
        model.save_pretrained(place)
        ours = getattr(models, task.model_class).from_pretrained(place, device=model.device)
    return FineTuned(ours, tokenizer, task, subject.max_length), seconds, trainer.state.global_step


def _examples(task: Task, rows: list[dict], tokenizer: Tokenizer, max_length: int) -> list[Example]:
    encoded = task.encoded([task.record(row) for row in rows], tokenizer, max_length)
    return [example for own in encoded.examples for example in own]


def _results(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole; half a line, which a kill leaves at the end, is cut off."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _key(result: dict[str, Any]) -> tuple:
    return tuple(result[name] for name in ("task", "contender", "seed", "steps"))


def _append(path: Path, result: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(f"{result['task']} {result['contender']} seed {result['seed']}: ", end="")
    print(f"{result['metric']} {result['score']:.4f} in {result['seconds']:.1f} s", flush=True)


def table(results: Iterable[dict[str, Any]], steps: int | None = None) -> str:
    """Means over seeds (and the scores' standard deviation), a row for each task, in Markdown."""
    heads = ("task", "metric", "transformers", "bert_fast", "of both, int8 less float32")
    heads += ("transformers, s", "bert_fast, s", "times as fast", "seeds")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    results = [result for result in results if result["steps"] == steps]
    for name, subject in SUBJECTS.items():
        own = {c: [r for r in results if (r["task"], r["contender"]) == (name, c)] for c in CONTENDERS}
        if not any(own.values()):
            continue
        scores = {c: _spread([r["score"] for r in runs]) for c, runs in own.items()}
        seconds = {c: statistics.mean(r["seconds"] for r in runs) if runs else None for c, runs in own.items()}
        ours, theirs = (seconds[c] for c in CONTENDERS)
        ratio = f"{theirs / ours:.2f}" if ours and theirs else ""
        times = ["" if seconds[c] is None else f"{seconds[c]:.1f}" for c in reversed(CONTENDERS)]
        counts = "/".join(str(len(own[c])) for c in reversed(CONTENDERS))
        costs = [r["score_int8"] - r["score"] for runs in own.values() for r in runs if r.get("score_int8") is not None]
        cells = [name, subject.score, *(scores[c] for c in reversed(CONTENDERS)), _spread(costs), *times, ratio, counts]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


if __name__ == "__main__":
    sys.exit(main())
