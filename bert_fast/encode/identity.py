"""What a job is made from, short enough to write down: if any of it changes, the rest of the job would not fit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import torch

from bert_fast.encode.inputs import Source
from bert_fast.ops.attention_host import host_attention_instructions

_BLOCK = 1 << 16
_BLOCKS = 16
_MODEL_FILES = (
    "*.json",
    "vocab.txt",
    "*.safetensors",
    "pytorch_model*.bin",
    "bert_model.ckpt.*",
)


def sample_hash(path: Path) -> str:
    """A hash of a file's size and of 16 blocks evenly spread over it, first and last included: quick at any size."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        last = max(size - _BLOCK, 0)
        for offset in sorted({last * i // (_BLOCKS - 1) for i in range(_BLOCKS)}):
            file.seek(offset)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def input_identity(source: Source) -> dict[str, Any]:
    """Size, time of change and sampled content of the input, and how it is read."""
    if source.is_stdin:
        return {"stdin": True}
    stat = os.stat(source.path)
    return {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sample": sample_hash(source.path),
        "format": source.kind,
        "field": source.field,
    }


def model_identity(folder: Path) -> dict[str, str]:
    """Sampled content of every file that makes the model: weights, config, tokenizer."""
    files = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    return {path.name: sample_hash(path) for path in files}


def software() -> dict[str, str | None]:
    """Versions on which the last bits of the numbers depend, and the instructions that the CPU's code is made of."""
    try:
        version = importlib.metadata.version("bert-fast")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {
        "bert_fast": version,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "attention": host_attention_instructions(),
    }
