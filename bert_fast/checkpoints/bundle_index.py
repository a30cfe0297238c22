"""The index of a TensorFlow-1 checkpoint: which tensors it has and where their bytes lie, all of it checked."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from bert_fast.checkpoints.protobuf import BYTES, FIXED32, VARINT, as_int64, collect
from bert_fast.checkpoints.source import CheckpointError, TensorInfo
from bert_fast.checkpoints.sstable import read_table

MAX_SHARDS = 99_999
MAX_DIMENSIONS = 8

_DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    19: torch.float16,
}

# The fields that count of the messages in tensorflow/core/protobuf/tensor_bundle.proto and what they refer to.
_HEADER = {1: ("num_shards", VARINT), 2: ("endianness", VARINT), 3: ("version", BYTES)}
_VERSION = {2: ("min_consumer", VARINT)}
_ENTRY = {
    1: ("dtype", VARINT),
    2: ("shape", BYTES),
    3: ("shard", VARINT),
    4: ("offset", VARINT),
    5: ("size", VARINT),
    6: ("crc", FIXED32),
    7: ("slices", BYTES),
}
_SHAPE = {2: ("dim", BYTES), 3: ("unknown_rank", VARINT)}
_DIM = {1: ("size", VARINT)}
_SUPPORTED_VERSION = 1

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_OBJECT_VALUE = ".ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True)
class Entry:
    """Where a tensor's bytes lie: `size` of them from `offset` in data file number `shard`."""

    info: TensorInfo
    shard: int
    offset: int
    size: int
    crc: int
    partitioned: bool

    @property
    def end(self) -> int:
        """The offset of the byte after the last."""
        return self.offset + self.size


def read_index(data: bytes) -> tuple[int, dict[str, Entry]]:
    """The number of data files, and every tensor by name, from the content of an index file.

    Raises CheckpointError where anything is broken or makes no sense, and for TensorFlow-2 object graphs.
    """
    table = read_table(data)
    shards = _read_header(table.pop(b"", b""))
    # Names that begin with a zero byte hold the slices of partitioned variables, under encoded names.
    entries = {_decode(key): _read_entry(value) for key, value in table.items() if key[:1] != b"\0"}
    _refuse_object_graph(entries)
    _check_places(entries, shards)
    return shards, entries


def _decode(key: bytes) -> str:
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"a tensor's name is not text: {key[:40]!r}") from None


def _last(values: list, default: int = 0) -> int:
    """Protobuf's rule for a field that comes more than once or not at all."""
    return values[-1] if values else default


def _read_header(message: bytes) -> int:
    header = collect(message, _HEADER)
    shards = _last(header["num_shards"])
    if not 1 <= shards <= MAX_SHARDS:
        raise CheckpointError(f"its header speaks of {shards} data files; 1 to {MAX_SHARDS} are possible")
    if _last(header["endianness"]):
        raise CheckpointError("it was written on a big-endian machine, which is not supported")
    for version in header["version"]:
        needed = _last(collect(version, _VERSION)["min_consumer"])
        if needed > _SUPPORTED_VERSION:
            raise CheckpointError(f"its format is version {needed}; up to version {_SUPPORTED_VERSION} is supported")
    return shards


def _read_entry(message: bytes) -> Entry:
    entry = collect(message, _ENTRY)
    sizes: list[int] = []
    for shape in entry["shape"]:
        parsed = collect(shape, _SHAPE)
        sizes += [as_int64(_last(collect(dim, _DIM)["size"])) for dim in parsed["dim"][: MAX_DIMENSIONS + 1]]
        if _last(parsed["unknown_rank"]) or len(sizes) > MAX_DIMENSIONS:
            raise CheckpointError(f"a tensor has no rank, or more than {MAX_DIMENSIONS} dimensions")
    if prod(max(size, 1) for size in sizes) >= 1 << 60:  # torch counts no further, not even where a zero is in between
        raise CheckpointError(f"a tensor of shape {sizes} cannot be")
    offset, size = as_int64(_last(entry["offset"])), as_int64(_last(entry["size"]))
    if min(offset, size, *sizes) < 0:
        raise CheckpointError(f"a tensor of shape {sizes} at {offset} of {size} bytes: negative numbers make no sense")
    info = TensorInfo(tuple(sizes), _DTYPES.get(_last(entry["dtype"])))
    if info.dtype is not None and not entry["slices"] and prod(sizes) * info.dtype.itemsize != size:
        raise CheckpointError(f"a tensor of shape {sizes} and type {info.dtype} is said to take {size} bytes")
    return Entry(info, _last(entry["shard"]), offset, size, _last(entry["crc"]), partitioned=bool(entry["slices"]))


def _refuse_object_graph(entries: dict[str, Entry]) -> None:
    if _OBJECT_GRAPH in entries or any(name.endswith(_OBJECT_VALUE) for name in entries):
        raise CheckpointError(
            "this is a TensorFlow-2 object-graph checkpoint, whose tensors are named by Python attributes "
            f"(.../{_OBJECT_VALUE}); only TensorFlow-1 checkpoints (bert/encoder/layer_0/...) can be read"
        )


def _check_places(entries: dict[str, Entry], shards: int) -> None:
    """No two tensors share bytes, so that all of them together are no larger than the files."""
    previous: Entry | None = None
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].shard, item[1].offset, item[1].size)):
        if entry.shard >= shards:
            raise CheckpointError(f"{name} is said to lie in data file {entry.shard} of {shards}")
        if previous is not None and previous.shard == entry.shard and previous.end > entry.offset:
            raise CheckpointError(f"{name} overlaps another tensor")
        previous = entry
