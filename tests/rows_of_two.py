"""Fine-tuned models whose rows one process reads, or two share; for two_processes.py."""

import contextlib
import io
import json
import os

from training.tasks import generated

from bert_fast import cli
from bert_fast.training import FineTuned, finetune
from bert_fast.training.finetuning import inference
from bert_fast.training.finetuning.ranks import Ranks, started_ranks

ROWS = 9  # the second window of two processes has one row, and so nothing for one of them
LEARNING = {"batch_size": 8, "learning_rate": 5e-3, "warmup": 0.0}
OF_TASK = {"qa": {"stride": 4, "max_length": 24}, "tokens": {"max_length": 12}}


def rows(name, count=ROWS):
    """Rows of a task; of questions and words some fill several windows."""
    found = list(generated.ROWS[name](count, 1))
    if name == "qa":
        for row in found[::3]:
            row["context"] += " the film was seen by a" * 5
    if name == "tokens":
        for row in found[::3]:
            row["tokens"], row["labels"] = row["tokens"] * 3, row["labels"] * 3
    return found


def prepare(folder):
    """By one process, once: a checkpoint, a model of each task, and a file of rows."""
    base = generated.checkpoint(folder / "base")
    for name, make in generated.ROWS.items():
        tuned = finetune(name, base, list(make(48, 0)), epochs=3, **LEARNING, **OF_TASK.get(name, {}))
        tuned.save(folder / name)
    text = "".join(json.dumps(row) + "\n" for row in rows("classification"))
    (folder / "rows.jsonl").write_text(text)


def scenarios(world, folder):
    """What each process found, by name: a list of the processes' values."""
    inference._WINDOW = 4
    ranks = Ranks.of_group()
    for name in generated.ROWS:
        tuned, runs = FineTuned.load(folder / name), []
        tuned.model.register_forward_pre_hook(
            lambda _, __, given, runs=runs: runs.append(len(given["input_ids"].cu_seqlens) - 1), with_kwargs=True
        )
        scores = tuned.evaluate(rows(name), shared=True)
        predictions = list(tuned.predict(rows(name), shared=True))
        yield f"rows of {name}", ranks.gathered({"scores": scores, "predictions": predictions, "runs": runs})
    for shard in (False, True)[:world]:
        lines = []
        options = {**LEARNING, "epochs": 8, "early_stopping": 2, "best_metric": "-eval_loss", "learning_rate": 2e-2}
        tuned = finetune(
            "classification", folder / "base", list(generated.classification(30)), rows("classification"),
            folder / f"tuned by {world} {shard}", shard=shard, callbacks=[lines.append], **options,
        )  # fmt: skip
        yield f"tuned, {shard}", ranks.gathered({"metrics": tuned.metrics, "lines": [x for x in lines if "rows" in x]})


def commands(world, folder):
    """What `evaluate` and `predict` print, in each process, and the file they leave."""
    common = [str(folder / "rows.jsonl"), "--model", str(folder / "classification")]
    output = folder / f"predicted by {world}.jsonl"
    with started_ranks():  # once: the commands would each meet at the same place, while one still leaves it
        printed = [_printed("evaluate", *common), _printed("predict", *common, "--output", str(output))]
        printed.append(_printed("evaluate", "-", *common[1:]) if world > 1 else None)
    (folder / f"printed {world} {os.environ.get('RANK', 0)}.json").write_text(json.dumps(printed))


def _printed(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as said:
        status = cli.main(list(arguments))
    return status, out.getvalue(), said.getvalue()
