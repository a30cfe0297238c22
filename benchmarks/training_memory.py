"""Bytes that autograd keeps for the backward pass, per token and layer: ours beside transformers'.

    python -m benchmarks.training_memory --dropout 0.1

Counted, not timed: every storage that a forward pass saves, once; parameters and what one layer more does not add left
out. Where there is no GPU, Triton's interpreter runs the kernels on the CPU: what they save is the same.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
from torch import nn

SIZES = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
BATCH, LENGTH = 1, 64


def saved_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes of the storages that ``run()`` saves for the backward pass, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    kept = []  # or a freed storage's address could come again

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(storage)
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        output = run()
    del output
    return sum(sizes.values())


def per_token_and_layer(
    library,
    dropout: float,
    shown: float = 1.0,
    checkpointing: bool = False,
    backend: str = "auto",
    precision: str = "float32",
) -> float:
    """Bytes for each token that the mask shows, in units of the hidden size: the difference that a layer makes.

    Args:
        library: ``bert_fast`` or ``transformers``.
        shown: the share of tokens that are not padding.
        precision: "float32", "bfloat16" (weights and all) or "autocast" (float32 weights, bfloat16 where it picks it).
    """
    from bert_fast import use_backend

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.randint(1, 100, (BATCH, LENGTH), device=device)
    mask = torch.zeros_like(ids)
    mask[:, : int(LENGTH * shown)] = 1
    totals = []
    for layers in (1, 2):
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        config = library.BertConfig(**SIZES, **rates, num_hidden_layers=layers, max_position_embeddings=LENGTH)
        model = library.BertModel(config).to(device).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        if precision == "bfloat16":
            model = model.to(torch.bfloat16)
        with use_backend(backend), torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"):
            totals.append(saved_bytes(model, lambda model=model: model(ids, attention_mask=mask)[0]))
    return (totals[1] - totals[0]) / int(mask.sum()) / SIZES["hidden_size"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dropout", type=float, default=0.1)
    dropout = parser.parse_args().dropout
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    import transformers

    import bert_fast

    print(f"dropout {dropout}, {LENGTH} tokens; bytes per visible token and layer over the hidden size")
    for precision, shown in (("float32", 1.0), ("float32", 0.5), ("bfloat16", 1.0), ("autocast", 1.0)):
        print(f"  {precision}, {shown:.0%} of the tokens are no padding")
        given = {"dropout": dropout, "shown": shown, "precision": precision}
        rows = {
            "transformers": per_token_and_layer(transformers, **given),
            "bert_fast, PyTorch's ops": per_token_and_layer(bert_fast, **given, backend="reference"),
            "bert_fast, kernels": per_token_and_layer(bert_fast, **given, backend="triton"),
            "bert_fast, checkpointing": per_token_and_layer(bert_fast, **given, checkpointing=True),
        }
        for name, value in rows.items():
            print(f"    {name:28}{value:8.1f}")


if __name__ == "__main__":
    main()
