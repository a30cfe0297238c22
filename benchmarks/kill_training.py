"""Training killed at random moments, checkpoints half written included, and taken up again: are the losses the same?

    python -m benchmarks.kill_training --kills 20
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path

SAVE_EVERY = 2


def train(run_dir: str, steps: int) -> None:
    """A small pretraining run with dropout, LAMB, a schedule and accumulation; shuffled anew in every epoch."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader

    from bert_fast import BertConfig, BertForPreTraining, PackedBatch
    from bert_fast.training import Lamb, fit, parameter_groups, polynomial_schedule

    torch.set_num_threads(1)
    torch.manual_seed(1)
    sizes = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    model = BertForPreTraining(BertConfig(**sizes, num_hidden_layers=2, num_attention_heads=4))
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 200, size=rng.integers(5, 40)) for _ in range(50)]

    def collate(numbers: list[int]) -> dict:
        ids = [texts[number] for number in numbers]
        labels = torch.from_numpy(np.concatenate(ids)).clone()
        labels[::3] = -100
        label = torch.tensor([number % 2 for number in numbers])
        return {"input_ids": PackedBatch.from_sequences(ids), "labels": labels, "next_sentence_label": label}

    optimizer = Lamb(parameter_groups(model, 0.01), lr=5e-3)
    fit(
        model,
        DataLoader(range(len(texts)), batch_size=4, shuffle=True, collate_fn=collate),
        optimizer,
        polynomial_schedule(optimizer, 5, steps),
        steps=steps,
        run_dir=run_dir,
        gradient_accumulation=2,
        max_grad_norm=1.0,
        save_every=SAVE_EVERY,
        log_every=1,
        seed=5,
    )


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line of metrics."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def killed_run(run_dir: Path, steps: int, kills: int, seed: int, say=print) -> dict[str, int]:
    """Start :func:`train` again and again, and kill it ``kills`` times; then let it end.

    The k-th kill comes after a random step of the k-th stretch of the run, however fast this machine is: every other
    time as soon as a checkpoint is being written, otherwise at once or a moment later, within whatever step that is.

    Returns how often it was killed, how often while it wrote, and at how many different steps it went on.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bert_fast.training.loop", "bert_fast.models"])
    draw = random.Random(seed)
    done, writing, resumed = 0, 0, set()
    while True:
        process = context.Process(target=train, args=(str(run_dir), steps))
        before = starts(run_dir)
        process.start()
        if done < kills:
            while process.is_alive() and starts(run_dir) == before:
                time.sleep(0.002)
            during = done % 2 == 0
            step = int(steps * (done + draw.random()) / (kills + 1))
            while process.is_alive() and reached(run_dir) < step:
                time.sleep(0.001)
            time.sleep(draw.uniform(0.0, 0.01))
            while during and process.is_alive() and not unfinished(run_dir):
                pass
        alive = process.is_alive()
        if done < kills and alive:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if not alive or process.exitcode != -signal.SIGKILL:
            if process.exitcode:
                raise RuntimeError(f"the run ended with {process.exitcode}")
            return {"kills": done, "while writing": writing, "different steps": len(resumed)}
        done += 1
        left = unfinished(run_dir)
        writing += bool(left)
        newest = max((int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-*")), default=0)
        resumed.add(newest)
        say(f"kill {done}: newest complete checkpoint {newest}, half written: {len(left)}")


def unfinished(run_dir: Path) -> list[Path]:
    """Checkpoints that are being written, or were when the process was killed."""
    return list((run_dir / "checkpoints").glob(".step-*.tmp"))


def reached(run_dir: Path) -> int:
    """How many steps the metrics tell of."""
    file = run_dir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def starts(run_dir: Path) -> int:
    """How often the run was begun."""
    file = run_dir / "command.txt"
    return file.read_text().count("\n") if file.is_file() else 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        train(str(whole), arguments.steps)
        print(killed_run(broken, arguments.steps, arguments.kills, arguments.seed))
        expected, found = losses(whole), losses(broken)
        same = expected == found
        print(f"{len(found)} losses, {'the same to the last bit' if same else 'DIFFERENT'}: last {found[-1]}")
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
