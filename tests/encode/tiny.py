"""A BERT so small that thousands of texts take seconds: random weights, a vocabulary of its own, texts made of it."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "bdgklmn"]
HIDDEN, LAYERS, HEADS, POSITIONS = 32, 2, 2, 64


def write_model(folder: Path, seed: int = 0, hidden: int = HIDDEN, layers: int = LAYERS) -> Path:
    """Writes config.json, model.safetensors (Hugging Face's names) and vocab.txt."""
    inner = 2 * HIDDEN
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *(f"##{w}" for w in "abcdefghijklmnopqrstuvwxyz"),
    ]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary), encoding="utf-8")
    values = {
        "model_type": "bert",
        "vocab_size": len(vocabulary),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "intermediate_size": inner,
        "max_position_embeddings": POSITIONS,
    }
    (folder / "config.json").write_text(json.dumps(values))
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    tensors = {
        "embeddings.word_embeddings.weight": randn(len(vocabulary), hidden),
        "embeddings.position_embeddings.weight": randn(POSITIONS, hidden),
        "embeddings.token_type_embeddings.weight": randn(2, hidden),
        "embeddings.LayerNorm.weight": 1 + randn(hidden),
        "embeddings.LayerNorm.bias": randn(hidden),
    }
    for layer in range(layers):
        shapes = {
            "attention.self.query": (hidden, hidden),
            "attention.self.key": (hidden, hidden),
            "attention.self.value": (hidden, hidden),
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
        }
        for name, shape in shapes.items():
            tensors[f"encoder.layer.{layer}.{name}.weight"] = randn(*shape)
            tensors[f"encoder.layer.{layer}.{name}.bias"] = randn(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors[f"encoder.layer.{layer}.{name}.weight"] = 1 + randn(hidden)
            tensors[f"encoder.layer.{layer}.{name}.bias"] = randn(hidden)
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_recipe(folder: Path, pooling: dict | str = "mean", normalize: bool = True, extra=(), **settings) -> Path:
    """Makes `folder` a sentence-transformers folder, in the old or (pooling: str) the new spelling of its config."""
    kinds = ["Transformer", "Pooling", *extra, *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    config = {"pooling_mode": pooling} if isinstance(pooling, str) else pooling
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": HIDDEN, **config}))
    if settings:
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 0 to 20 words, mostly short; some hold letters that are not in the vocabulary."""
    source = random.Random(seed)
    texts = [" ".join(source.choices(WORDS, k=min(20, int(source.expovariate(0.2))))) for _ in range(count)]
    for index in range(0, count, 97):
        texts[index] += " Ünïcode 中文 😀"
    return texts
