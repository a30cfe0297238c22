"""Reads Hugging Face checkpoints: `model.safetensors`, `pytorch_model.bin`, and both in shards with an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bert_fast.checkpoints.files import INDEX_SUFFIX, read_json, weight_names
from bert_fast.checkpoints.pickled import PickleFile
from bert_fast.checkpoints.source import CheckpointError, CheckpointNotFoundError, TensorInfo, TensorSource
from bert_fast.checkpoints.tensorflow import TensorBundle, find_bundle

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_MAPPED_BYTES = 1 << 25
"""How much of a mapping may lie in memory before it is given up for a fresh one."""


class SafetensorsFile(TensorSource):
    """An open `.safetensors` file whose tensors are views of the mapped file.

    Pages of a mapping count as the process's memory once they were read, so the mapping is renewed every 32 MiB: a
    caller who copies tensors out, and keeps no view, needs little more memory than the copies.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._read = 0
        self._file = self._open()
        self.tensors = {name: self._info(name) for name in self._file.keys()}  # noqa: SIM118 - it is no mapping

    def load(self, name: str) -> torch.Tensor:
        """One tensor, a view of the mapping."""
        if self._read > _MAPPED_BYTES:
            self.release()
        self._read += self.tensors[name].nbytes
        try:
            self._file = self._file or self._open()
            return self._file.get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path}: {name} cannot be read: {error}") from None

    def release(self) -> None:
        """Give up the mapping, until the next tensor is asked for. It goes when the last view of it is gone."""
        self._file, self._read = None, 0

    close = release

    def _open(self) -> Any:
        try:
            return safe_open(self.path, framework="pt")
        except FileNotFoundError:
            raise CheckpointNotFoundError(f"{self.path} does not exist") from None
        except (SafetensorError, RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(f"{self.path} is broken or not a safetensors file: {error}") from None

    def _info(self, name: str) -> TensorInfo:
        view = self._file.get_slice(name)
        return TensorInfo(tuple(view.get_shape()), _DTYPES.get(view.get_dtype()))


class ShardedCheckpoint(TensorSource):
    """Several files behind an index, `{"weight_map": {tensor: file}}`.

    The files must lie beside the index: a path in the index, which could lead anywhere, is refused.
    """

    def __init__(self, index: str | Path) -> None:
        self.path = Path(index)
        self._file_of = _read_weight_map(self.path)
        self._last: str | None = None
        self._shards = {name: open_file(self.path.with_name(name)) for name in sorted(set(self._file_of.values()))}
        for name, file in self._file_of.items():
            if name not in self._shards[file].tensors:
                raise CheckpointError(f"{self.path} says that {name} is in {file}, which does not hold it")
        self.tensors = {name: self._shards[file].tensors[name] for name, file in self._file_of.items()}

    def load(self, name: str) -> torch.Tensor:
        """One tensor, as its shard gives it. Only one shard at a time keeps memory."""
        file = self._file_of[name]
        if self._last not in (None, file):
            self._shards[self._last].release()
        self._last = file
        return self._shards[file].load(name)

    def close(self) -> None:
        """Close every shard."""
        for shard in self._shards.values():
            shard.close()


def open_file(path: Path) -> TensorSource:
    """Open one file of weights, known by its ending."""
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in (".bin", ".pt", ".pth"):
        return PickleFile(path)
    raise CheckpointError(f"{path} is not a file of weights; known endings: .safetensors, .bin, .pt, .pth, .index")


def open_checkpoint(path: Path, *, variant: str | None = None, use_safetensors: bool | None = None) -> TensorSource:
    """Open whatever checkpoint is at `path`: a directory, a file of weights, an index, a TensorFlow prefix.

    Raises CheckpointNotFoundError, saying what was looked for, where there is none; CheckpointError for a broken one.
    """
    if path.is_dir():
        return _open_directory(path, variant, use_safetensors)
    if path.name.endswith(INDEX_SUFFIX) or path.match("*.index.*.json"):
        return ShardedCheckpoint(path)
    if path.suffix == ".index" or path.with_name(f"{path.name}.index").is_file():
        return TensorBundle(path)
    return open_file(path)


def _open_directory(path: Path, variant: str | None, use_safetensors: bool | None) -> TensorSource:
    names = weight_names(variant, use_safetensors)
    for name in names:
        if (path / name).is_file():
            return ShardedCheckpoint(path / name) if name.endswith(".json") else open_file(path / name)
    bundle = find_bundle(path) if variant is None and not use_safetensors else None
    if bundle is not None:
        return TensorBundle(bundle)
    held = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "nothing"
    raise CheckpointNotFoundError(f"{path} has no weights: none of {', '.join(names)} or *.ckpt.index; it has {held}")


def _read_weight_map(index: Path) -> Mapping[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or file.startswith(".") or set(file) & set("/\\:\0"):
            raise CheckpointError(f"{index} places {name} in {file!r}; only plain names of files beside it are allowed")
    return weight_map
