"""Started by torchrun: short runs in two processes, their losses written as JSON for test_processes.py to judge."""

import json
import os
import sys
from pathlib import Path

import rows_of_two
import torch
from tiny_training import NO_DROPOUT, SIZES, collected, joined, pretraining_batch, pretraining_model, texts
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode

from bert_fast import BertConfig, BertModel
from bert_fast.training import AdamW, Lamb, PretrainSettings, devices, parameter_groups, pretrain, record
from bert_fast.training.data import Batch
from bert_fast.training.devices import make_accelerator
from bert_fast.training.pretraining import run


class SharedOut:
    """Batches of which every process gets its texts; the last batch has one, so that the second process has none."""

    def __init__(self, rank, world, batches=5, taken=0):
        sizes = [4] * (batches - 1) + [1]
        rows, self.batches = texts(sum(sizes)), []
        for k, size in enumerate(sizes):
            singles = [pretraining_batch([row], 10 * k + i) for i, row in enumerate(rows[:size])]
            rows = rows[size:]
            mine = singles[rank::world]
            whole = joined(mine or singles)
            counts = {
                "labels": int((whole["labels"] != -100).sum()),
                "next_sentence_label": len(whole["next_sentence_label"]),
            }
            if not mine:
                counts = dict.fromkeys(counts, 0)
            self.batches.append(Batch(whole, label_counts=counts, tokens=0, filler=not mine))
        self.taken = taken

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.taken = state["taken"]

    def __iter__(self):
        for batch in self.batches[self.taken :]:
            self.taken += 1
            yield batch
        self.taken = 0


class UnusedPooler(nn.Module):
    """The encoder with its pooler, which the loss does not read."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.bert = BertModel(BertConfig(**SIZES, **NO_DROPOUT))

    def forward(self, input_ids, labels, next_sentence_label):
        states = self.bert(input_ids).last_hidden_state
        return {"loss": states[labels != -100].square().sum(-1).sqrt().mean()}


class _OneLoss:
    def counts(self, batch):
        return {"labels": batch.label_counts["labels"]}

    def __call__(self, model, batch):
        return {"labels": model(**batch)["loss"]}


def optimizer(kind, model):
    return {"AdamW": AdamW, "Lamb": Lamb}[kind](parameter_groups(model, 0.01), lr=1e-2)


def scenarios(rank, world, folder):
    """The losses of each, by name; run_dir's are shared with the test, which goes on with other processes."""
    record.plot = lambda metrics, path: None  # longer than the runs

    def run(kind="Lamb", steps=6, model=None, taken=0, **options):
        model = model or pretraining_model(**NO_DROPOUT)
        options = {"max_grad_norm": 1.0, "optimizer": optimizer(kind, model), "steps": steps, **options}
        return collected(model, SharedOut(rank, world, taken=taken), **options)

    yield "Lamb", run()
    yield "AdamW", run("AdamW")
    yield "accumulated", run(gradient_accumulation=2)
    yield "unused pooler", run(model=UnusedPooler(), unused_parameters=True, loss=_OneLoss())
    yield "pretrain", pretrained(folder, f"pretrained by {world}", shard=world > 1)
    yield from rows_of_two.scenarios(world, folder)
    yield "to be gone on with", run(steps=3, run_dir=folder / f"from {world}")
    if world > 1:
        for kind in ("Lamb", "AdamW"):
            yield f"{kind}, sharded", run(kind, shard=True)
        yield "accumulated, sharded", run(gradient_accumulation=2, shard=True)
        for kind in ("Lamb", "AdamW"):
            yield f"{kind}, fp16, sharded", in_fp16(rank, lambda k=kind, **options: run(k, **options))
        yield "exchanges", exchanges()
        yield "recomputed, sharded", run(gradient_checkpointing=True, shard=True)
        yield "sharded, to be gone on with", run(steps=3, shard=True, run_dir=folder / "from sharded")
        yield "gone on with, from 1", run(run_dir=folder / "from 1")
        yield "gone on with, sharded, from copies", run(shard=True, run_dir=folder / "copy of from 1")
    else:
        for kind in ("Lamb", "AdamW"):
            yield f"{kind}, without two batches", run(kind, taken=2)
        yield "gone on with, from 2", run(run_dir=folder / "from 2")
        yield "gone on with, from sharded", run(run_dir=folder / "from sharded")


def exchanges():
    """How often the processes meet in a step of each optimizer over sharded parameters, and how many of these decay."""
    found = []
    for kind in ("Lamb", "AdamW"):
        model = pretraining_model()
        moving = optimizer(kind, model)
        devices.prepare(devices.make_accelerator(), model, moving, shard=True)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with CommDebugMode() as counted:
            moving.step()
        found.append(counted.get_total_counts())
    return [*found, sum(p.ndim > 1 for p in model.parameters())]


def in_fp16(rank, run):
    """A run with a loss scale, and infinities in the second process's part of gradients while the scale is above 2**10:
    [losses, scales of both]. Accelerate's fp16 needs a GPU; all that follows from it does not."""
    accelerator = make_accelerator()
    accelerator.state._mixed_precision = "fp16"
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def unscale():
        (optimizer,) = accelerator._optimizers
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert p.grad.dtype == torch.float32
                if rank == 1 and scaler.get_scale() > 2**10:
                    p.grad.to_local().fill_(torch.inf)
        scaler.unscale_(optimizer.optimizer)
        scales.append(scaler.get_scale())

    scales, accelerator.unscale_gradients = [], unscale
    accelerator._optimizers.clear()
    try:
        losses = run(shard=True, accelerator=accelerator, steps=8)
    finally:
        accelerator.state._mixed_precision = "no"
    return [losses, rows_of_two.Ranks.of_group().gathered(scales)]


def pretrained(folder, output, shard):
    """The losses and scores of a run from documents, in two phases; one process of two has nothing in the last batch
    of an evaluation, and takes part in its layers' exchange."""
    run._EVAL_BATCH = 1
    settings = PretrainSettings(
        documents=[str(folder / "documents.txt")],
        eval_documents=[str(folder / "held_out.txt")],
        tokenizer=str(folder / "tokenizer"),
        output=str(folder / output),
        model=str(folder / "small.json"),
        max_length=[16, 32],
        steps=[3, 2],
        batch_size=[8, 4],
        dropout=0.0,
        evaluate_every=4,
        log_every=1,
        shard=shard,
    )
    lines, evaluated = [], []
    measured = run._measured
    run._measured = lambda model, batch: evaluated.append(batch.filler) or measured(model, batch)
    pretrain(settings, [lines.append])
    run._measured = measured
    assert any(evaluated) == (make_accelerator().process_index == 1), "no process is without rows: change held_out.txt"
    return [value for line in lines for name, value in line.items() if name.endswith(("loss", "accuracy"))]


if __name__ == "__main__":
    torch.set_num_threads(1)
    accelerator = make_accelerator()
    assert accelerator.num_processes == 2
    found = dict(scenarios(accelerator.process_index, accelerator.num_processes, Path(sys.argv[1])))
    if accelerator.is_main_process:
        Path(sys.argv[1], "losses.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
    # The commands meet for themselves, at a place without keys of the group before.
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": sys.argv[2]}
    rows_of_two.commands(2, Path(sys.argv[1]))
