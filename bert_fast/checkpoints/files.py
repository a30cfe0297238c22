"""Which files make a checkpoint: their names, where they are looked for, and JSON that is read with suspicion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bert_fast.checkpoints.source import CheckpointError, CheckpointNotFoundError

CONFIG = "config.json"
GOOGLE_CONFIG = "bert_config.json"
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"

COMPANIONS = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
"""What is worth having beside weights and config: the tokenizer, and how sentence embeddings are made."""

MAX_JSON_SIZE = 1 << 26
MAX_NUMBER = 1 << 31
MAX_LABELS = 1 << 20


def weight_names(variant: str | None = None, use_safetensors: bool | None = None) -> list[str]:
    """The Hugging Face names of a directory's weights, the preferred first: `model[.variant].safetensors`, its index
    when it is sharded, `pytorch_model[.variant].bin`, its index."""
    names = []
    for name, safe in ((SAFETENSORS, True), (PICKLE, False)):
        if use_safetensors in (None, safe):
            stem, kind = name.rsplit(".", 1)
            middle = f".{variant}" if variant else ""
            # transformers puts the variant in these two different places
            names += [f"{stem}{middle}.{kind}", f"{name}.index{middle}.json"]
    return names


def config_file(path: Path) -> Path:
    """The configuration of a checkpoint that is a directory, a file in it, or the prefix of files in it."""
    directory = path if path.is_dir() else path.parent
    for name in (CONFIG, GOOGLE_CONFIG):
        if (directory / name).is_file():
            return directory / name
    raise CheckpointNotFoundError(f"{directory} has neither {CONFIG} nor {GOOGLE_CONFIG}; pass config= to do without")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError where it is not one, or of absurd size."""
    try:
        if file.stat().st_size > MAX_JSON_SIZE:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; at most {MAX_JSON_SIZE} make sense")
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{file} does not exist") from None
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(content).__name__}")
    return content


def read_config(file: Path) -> dict[str, Any]:
    """The content of a `config.json` or `bert_config.json`. Raises CheckpointError where it is not of a BERT,
    or has numbers that no model has."""
    values = read_json(file)
    kind = values.get("model_type", "bert")  # Google's files and the oldest of Hugging Face's do not say
    if kind != "bert":
        raise CheckpointError(f"{file} describes a model of type {kind!r}; supported: 'bert'")
    for name, value in values.items():
        limit = MAX_LABELS if name == "num_labels" else MAX_NUMBER  # labels are listed one by one
        if isinstance(value, int) and abs(value) > limit:
            raise CheckpointError(f"{file}: {name} is {value}; at most {limit} makes sense")
    return values
