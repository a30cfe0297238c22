"""Reads TensorFlow-1 checkpoints (tensor bundles) without TensorFlow.

A bundle is `PREFIX.index`, which says what there is and where, and `PREFIX.data-00000-of-0000N`, the values. Every
tensor's CRC-32C is verified as it is read. Values are read into their own memory, one tensor at a time, rather than
mapped: they have to be checked and mostly transposed anyway, and a file cut short underneath is then an error.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import torch

from bert_fast.checkpoints.bundle_index import read_index
from bert_fast.checkpoints.crc32c import masked_crc32c
from bert_fast.checkpoints.source import CheckpointError, CheckpointNotFoundError, TensorSource

MAX_INDEX_SIZE = 1 << 26


class TensorBundle(TensorSource):
    """An open TensorFlow-1 checkpoint with the names and layouts of the file.

    Args:
        path: the prefix (`.../bert_model.ckpt`) or the index file (`.../bert_model.ckpt.index`).
        index_only: the files of values may be absent, as long as nothing is loaded.

    Raises:
        CheckpointNotFoundError: a file is absent.
        CheckpointError: the checkpoint is damaged, hostile, or a TensorFlow-2 object graph.
    """

    def __init__(self, path: str | Path, *, index_only: bool = False) -> None:
        self.path = Path(str(path).removesuffix(".index"))
        index = self.path.with_name(f"{self.path.name}.index")
        if not index.is_file():
            raise CheckpointNotFoundError(f"{index} does not exist")
        if index.stat().st_size > MAX_INDEX_SIZE:
            raise CheckpointError(f"{index} has {index.stat().st_size} bytes; at most {MAX_INDEX_SIZE} make sense")
        try:
            self._shards, self._entries = read_index(index.read_bytes())
        except CheckpointError as error:
            raise CheckpointError(f"{index}: {error}") from None
        self.tensors = {name: entry.info for name, entry in self._entries.items()}
        if not index_only:
            for shard in sorted({entry.shard for entry in self._entries.values()}):
                self._check_file(shard)

    def load(self, name: str) -> torch.Tensor:
        """Read one tensor (shape and dtype as stored) and verify its checksum."""
        entry = self._entries[name]
        if entry.partitioned:
            raise CheckpointError(
                f"{self.path}: {name} is a partitioned variable, stored in slices; save it again without a partitioner"
            )
        if entry.info.dtype is None:
            raise CheckpointError(f"{self.path}: {name} does not hold numbers of a type that torch has")
        self._check_file(entry.shard)  # before memory is asked for
        if not entry.size:
            return torch.empty(entry.info.shape, dtype=entry.info.dtype)
        memory = _memory(entry.size)
        file = self._file(entry.shard)
        with file.open("rb") as stream:
            stream.seek(entry.offset)
            if stream.readinto(memory) != entry.size:
                raise CheckpointError(f"{file} ends inside {name}: it was cut short")
        if masked_crc32c(memoryview(memory)) != entry.crc:
            raise CheckpointError(f"{file}: the checksum of {name} is wrong: the file was damaged")
        return torch.frombuffer(memory, dtype=entry.info.dtype).reshape(entry.info.shape)

    def _file(self, shard: int) -> Path:
        return self.path.with_name(f"{self.path.name}.data-{shard:05d}-of-{self._shards:05d}")

    def _check_file(self, shard: int) -> None:
        file = self._file(shard)
        if not file.is_file():
            raise CheckpointNotFoundError(f"{file} is missing; {self.path.name}.index says that it holds tensors")
        needed = max(entry.end for entry in self._entries.values() if entry.shard == shard)
        if needed > file.stat().st_size:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; its index needs {needed}: it was cut short")


def _memory(size: int) -> mmap.mmap:
    """Memory that goes back to the system, not to a heap that keeps it, when the tensor made of it is gone."""
    return mmap.mmap(-1, size)


def find_bundle(directory: Path) -> Path | None:
    """The prefix of the one TensorFlow checkpoint in a directory; None if it has none.

    Of several, the one called `bert_model.ckpt`, else the one that the file `checkpoint` names as the latest.
    """
    found = sorted(file.with_suffix("") for file in directory.glob("*.index") if file.is_file())
    chosen = [prefix for prefix in found if prefix.name == "bert_model.ckpt"] or found
    state = directory / "checkpoint"
    if len(chosen) > 1 and state.is_file():
        text = state.read_bytes()[:4096].decode(errors="replace")
        latest = re.search(r'^model_checkpoint_path: "(?:[^"\n]*/)?([^"/\n]+)"', text, re.MULTILINE)
        chosen = [prefix for prefix in chosen if latest and prefix.name == latest[1]] or chosen
    if len(chosen) > 1:
        names = ", ".join(prefix.name for prefix in chosen)
        raise CheckpointError(f"{directory} holds several TensorFlow checkpoints ({names}); give the path of one")
    return chosen[0] if chosen else None
