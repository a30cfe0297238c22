"""Writes Hugging Face checkpoints: safetensors, in shards where they get large, each file whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bert_fast import io
from bert_fast.checkpoints.files import SAFETENSORS
from bert_fast.checkpoints.source import CheckpointError

MAX_SHARD_SIZE = "50GB"
"""As in transformers 5."""

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(size: int | str) -> int:
    """Bytes from a number or a text such as "5GB" or "200 MiB". Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B)?", str(size).strip().upper())
    if isinstance(size, bool) or match is None or (match[2] or "") not in (*_UNITS, "B"):
        raise ValueError(f"max_shard_size must be a number of bytes or a text such as '5GB', not {size!r}")
    count = int(float(match[1]) * _UNITS.get(match[2] or "", 1))
    if count < 1:
        raise ValueError(f"max_shard_size must be at least one byte, not {size!r}")
    return count


def writable(state: Mapping[str, Any], tied: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors to write: each memory once, as safetensors demands it.

    Of two names for the same values, the one that `tied` maps to the other is dropped, as in `transformers`; other
    tensors that share memory are written apart.

    Raises:
        CheckpointError: something in `state` cannot be written.
    """
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"state_dict must hold tensors; {name} is a {type(value).__name__}")
        if type(value).__name__ == "DTensor":
            raise CheckpointError(f"{name} is sharded over processes (a DTensor); gather the state_dict before saving")
        if value.is_meta or value.layout != torch.strided:
            raise CheckpointError(f"{name} has no plain values to save: device {value.device}, layout {value.layout}")
    kept = {name: value for name, value in state.items() if not _same(value, state.get(tied.get(name, "")))}
    seen: set[int] = set()
    plain: dict[str, torch.Tensor] = {}
    for name, value in kept.items():
        values = value.detach().contiguous()
        memory = values.untyped_storage().data_ptr()
        whole = values.nbytes == values.untyped_storage().nbytes() and memory not in seen
        plain[name] = values if whole or not values.nbytes else values.clone()
        seen.add(memory)
    return plain


def _same(value: torch.Tensor, other: torch.Tensor | None) -> bool:
    if other is None or value.shape != other.shape or value.dtype != other.dtype or value.device != other.device:
        return False
    return (value.data_ptr() == other.data_ptr() and value.stride() == other.stride()) or torch.equal(value, other)


def split(tensors: Mapping[str, torch.Tensor], max_shard_size: int) -> dict[str, list[str]]:
    """File names and what goes into each, in order; a tensor larger than the limit has a file of its own."""
    shards: list[list[str]] = [[]]
    room = max_shard_size
    for name, value in tensors.items():
        if value.nbytes > room and shards[-1]:
            shards.append([])
            room = max_shard_size
        shards[-1].append(name)
        room -= value.nbytes
    if len(shards) == 1:
        return {SAFETENSORS: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def save_weights(
    tensors: Mapping[str, torch.Tensor], directory: Path, max_shard_size: int | str = MAX_SHARD_SIZE
) -> list[Path]:
    """Write `model.safetensors`, or shards and their index, in the place of any that the directory has.

    Every file is complete on disk under a temporary name before the first takes its place; what an earlier save left
    and this one does not need is removed last. Returns the files.
    """
    shards = split(tensors, parse_size(max_shard_size))
    written = {directory / file: io.temporary_sibling(directory / file) for file in shards}
    index = directory / f"{SAFETENSORS}.index.json"
    try:
        for temporary, names in zip(written.values(), shards.values(), strict=True):
            save_file({name: tensors[name] for name in names}, temporary, metadata={"format": "pt"})
            io.fsync(temporary)
        for file, temporary in written.items():
            io.replace(temporary, file)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        metadata = {
            "total_parameters": sum(value.numel() for value in tensors.values()),
            "total_size": sum(value.nbytes for value in tensors.values()),
        }
        content = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
        io.atomic_write(index, content.encode())
    kept = {*written, index} if len(shards) > 1 else {*written}
    for stale in (index, directory / SAFETENSORS, *directory.glob("model-*-of-*.safetensors")):
        shard = re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", stale.name)
        if stale not in kept and (shard or not stale.name.startswith("model-")):
            stale.unlink(missing_ok=True)
    return sorted(kept)
