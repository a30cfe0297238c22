"""Writes TensorFlow-1 checkpoints, whole or broken in a chosen way, so that tests need neither TensorFlow nor files.

It shares no code with the reader but numpy: bytes are put together here from the format's description.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MAGIC = 0xDB4775248B80FB57
DTYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "int64": 9, "bool": 10}
DTYPES["float16"] = 19
BFLOAT16, STRING = 14, 7


def slow_crc32c(data):
    """CRC-32C bit by bit, from its definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


_STEP = [slow_crc32c(bytes([byte])) ^ 0xFFFFFFFF ^ 0x00FFFFFF for byte in range(255, -1, -1)]


def masked_crc32c(data):
    """The same by bytes (a byte's step is what the bits give for it alone), and masked as in the files."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _STEP[(crc ^ byte) & 0xFF]
    return masked(crc ^ 0xFFFFFFFF)


def masked(crc):
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def number(tag, value):
    return varint(tag << 3) + varint(value)


def message(tag, content):
    return varint(tag << 3 | 2) + varint(len(content)) + content


def fixed32(tag, value):
    return varint(tag << 3 | 5) + struct.pack("<I", value)


def header(shards=1, endianness=0, min_consumer=None):
    version = number(1, 1) + (b"" if min_consumer is None else number(2, min_consumer))
    return number(1, shards) + (number(2, endianness) if endianness else b"") + message(3, version)


def entry(dtype, shape, shard, offset, size, crc, slices=b""):
    dims = b"".join(message(2, number(1, n)) for n in shape)
    where = (number(3, shard) if shard else b"") + (number(4, offset) if offset else b"")
    return number(1, dtype) + message(2, dims) + where + number(5, size) + fixed32(6, crc) + slices


def block(pairs, restart_interval=16):
    """Entries with shared prefixes left out, and the restart offsets; without the trailer."""
    out, restarts, previous = bytearray(), [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % restart_interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(pairs, block_entries=8, compression=0, blocks=None):
    """A sorted string table. `blocks` replaces the data blocks, to break them before their checksums are made."""
    groups = [pairs[i : i + block_entries] for i in range(0, len(pairs), block_entries)]
    contents = [block(group) for group in groups] if blocks is None else blocks
    lasts = [group[-1][0] for group in groups][: len(contents)]
    lasts += [b"\xff"] * (len(contents) - len(lasts))
    out = bytearray()

    def append(content):
        handle = varint(len(out)) + varint(len(content))
        typed = content + bytes([compression])
        out.extend(typed + struct.pack("<I", masked_crc32c(typed)))
        return handle

    handles = [append(content) for content in contents]
    metaindex = append(block([]))
    index = append(block(list(zip(lasts, handles, strict=True)), restart_interval=1))
    footer = (metaindex + index).ljust(40, b"\0") + struct.pack("<Q", MAGIC)
    return bytes(out) + footer


@dataclass
class Bundle:
    """The parts of a checkpoint, ready to be changed before they are written."""

    entries: dict = field(default_factory=dict)
    shards: list = field(default_factory=list)
    header: bytes = b""

    def pairs(self):
        return sorted({b"": self.header, **{name.encode(): value for name, value in self.entries.items()}}.items())

    def write(self, prefix, **options):
        prefix = Path(prefix)
        for i, content in enumerate(self.shards):
            Path(f"{prefix}.data-{i:05d}-of-{len(self.shards):05d}").write_bytes(content)
        Path(f"{prefix}.index").write_bytes(table(self.pairs(), **options))
        return prefix


def bundle(tensors, shards=1):
    """A bundle of numpy arrays by name, or of `(type number, shape, bytes)` for types that numpy has not."""
    made = Bundle(header=header(shards), shards=[bytearray() for _ in range(shards)])
    for i, (name, value) in enumerate(sorted(tensors.items())):
        if not isinstance(value, tuple):
            value = np.asarray(value)
            value = (DTYPES[value.dtype.name], value.shape, value.tobytes())
        dtype, shape, raw = value
        shard = made.shards[i % shards]
        made.entries[name] = entry(dtype, shape, i % shards, len(shard), len(raw), masked_crc32c(raw))
        shard += raw
    return made
