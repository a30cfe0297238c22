"""The sizes of the models that are measured, and what a forward pass over them has to compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "vocab_size": 97, "max_position_embeddings": 64,
    },
}  # fmt: skip


def flops(shape: dict[str, Any], lengths: Iterable[int]) -> float:
    """Floating-point operations of the encoder's products and attention over sequences of these lengths."""
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    a_token = 2 * layers * hidden * (4 * hidden + 2 * shape["intermediate_size"])
    a_pair = 4 * layers * hidden
    return float(sum(a_token * n + a_pair * n * n for n in lengths))
