"""How far Lamb and AdamW stray from their authors' loops, and from peers, over many steps.

    python -m benchmarks.optimizer_trajectories --steps 1000

Random gradients, the same for all, show what rounding alone adds up to; a small BERT, whose gradients follow its
weights, shows what a training run sees. The loops (tests/optimizer_loops.py) are written apart from the library. The
float32 loop is the yardstick: how far it is itself from the same loop in float64.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from benchmarks.files import load
from benchmarks.options import ROOT
from bert_fast import BertConfig, BertForPreTraining
from bert_fast.training import AdamW, Lamb, parameter_groups

loops = load(ROOT / "tests" / "optimizer_loops.py")

SHAPES = ((300, 64), (64, 64), (64,), (256, 64), (7, 5, 3), ())
_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def _timm(groups: list[dict], lr: float) -> Any:
    from timm.optim import Lamb as TimmLamb

    return TimmLamb(groups, lr=lr, eps=1e-6, max_grad_norm=1.0, decoupled_decay=False)


# name -> (ours, {other: optimizer}), each from groups of parameters and a learning rate
CONTENDERS: dict[str, tuple[Callable, dict[str, Callable]]] = {
    "Lamb, clipped": (
        lambda groups, lr: Lamb(groups, lr, max_grad_norm=1.0),
        {"loop": lambda groups, lr: loops.LoopOptimizer(groups, loops.lamb, 1.0, lr=lr), "timm": _timm},
    ),
    "Lamb without bias correction": (
        lambda groups, lr: Lamb(groups, lr, bias_correction=False),
        {"loop": lambda groups, lr: loops.LoopOptimizer(groups, loops.lamb, lr=lr, correct=False)},
    ),
    "AdamW": (
        lambda groups, lr: AdamW(groups, lr),
        {
            "loop": lambda groups, lr: loops.LoopOptimizer(groups, loops.adamw, lr=lr),
            "torch": lambda groups, lr: torch.optim.AdamW(groups, lr, foreach=False),
            "torch fused": lambda groups, lr: torch.optim.AdamW(groups, lr, fused=True),
        },
    ),
    "AdamW as BERT was trained": (
        lambda groups, lr: AdamW(groups, lr, eps=1e-6, bias_correction=False, max_grad_norm=1.0),
        {"loop": lambda groups, lr: loops.LoopOptimizer(groups, loops.google_adam, 1.0, lr=lr)},
    ),
}


def random_run(make: Callable, steps: int, dtype: torch.dtype) -> list[Tensor]:
    """Weights after ``steps`` with gradients from a seed."""
    start = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=start).to(dtype)) for shape in SHAPES]
    groups = [{"params": params[::2], "weight_decay": 0.01}, {"params": params[1::2], "weight_decay": 0.0}]
    optimizer = make(groups, 1e-3)
    for i in range(steps):
        generator = torch.Generator().manual_seed(i)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        optimizer.step()
    return [p.detach().double() for p in params]


def bert_run(make: Callable, steps: int, dtype: torch.dtype) -> list[Tensor]:
    """Weights of a small BERT after ``steps`` of pretraining on one batch."""
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForPreTraining(BertConfig(vocab_size=101, **_BERT, **dropout)).to(dtype).train()
    ids = torch.randint(5, 101, (4, 16), generator=torch.Generator().manual_seed(1))
    optimizer = make(parameter_groups(model, 0.01), 1e-3)
    for _ in range(steps):
        model(ids, labels=ids, next_sentence_label=torch.tensor([0, 1, 1, 0])).loss.backward()
        optimizer.step()
        model.zero_grad()
    return [p.detach().double() for p in model.parameters()]


def apart(first: list[Tensor], second: list[Tensor]) -> float:
    """The largest difference between two runs' weights."""
    return max((x - y).abs().max().item() for x, y in zip(first, second, strict=True) if x.numel())


def measure(steps: int) -> list[dict[str, Any]]:
    """A row for every optimizer and workload: differences of ours, and of the others, from the float64 loop."""
    rows = []
    for workload, run in (("random", random_run), ("tiny BERT", bert_run)):
        for name, (ours, others) in CONTENDERS.items():
            truth = run(others["loop"], steps, torch.float64)
            found = {"ours": run(ours, steps, torch.float32)}
            for other, make in others.items():
                try:
                    found[other] = run(make, steps, torch.float32)
                except ImportError as missing:
                    print(f"{other}: left out, {missing}")
            row: dict[str, Any] = {"workload": workload, "optimizer": name, "steps": steps}
            row |= {f"{who} to float64": apart(weights, truth) for who, weights in found.items()}
            row |= {f"ours to {who}": apart(found["ours"], weights) for who, weights in found.items() if who != "ours"}
            rows.append(row)
    return rows


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the rows and the environment here")
    chosen = parser.parse_args()
    rows = measure(chosen.steps)
    for row in rows:
        print(f"{row['workload']}, {row['optimizer']}, {row['steps']} steps: largest difference")
        for key, value in row.items():
            if " to " in key:
                print(f"    {key:28s} {value:.1e}")
    if chosen.json:
        chosen.json.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
