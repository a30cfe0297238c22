"""Reads the sorted string table (LevelDB's format) in which TensorFlow keeps a checkpoint's index.

    file   := data block*, metaindex block, index block, footer
    block  := entry*, restart offsets (uint32 each), number of restarts (uint32), then 5 bytes: type, masked CRC-32C
    entry  := shared length, unshared length, value length (varints), unshared key bytes, value
    footer := handle of the metaindex, handle of the index (offset and size, varints), padding to 40 bytes, magic

The index block maps the last key of every data block to that block's handle. Every length is checked before it is
believed, and keys and blocks must rise, so that no small file can unfold into a large one.
"""

from __future__ import annotations

from collections.abc import Iterator

from bert_fast.checkpoints.crc32c import masked_crc32c
from bert_fast.checkpoints.protobuf import read_varint
from bert_fast.checkpoints.source import CheckpointError

MAGIC = 0xDB4775248B80FB57
FOOTER_SIZE = 48
TRAILER_SIZE = 5
_COMPRESSION = {1: "snappy", 2: "zstd"}

MAX_KEY_SIZE = 4096
MAX_KEYS_SIZE = 1 << 26
"""Bytes of all keys together. The largest BERT with optimizer slots needs about 100 kB."""


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Every key and value of the table, in order. Raises CheckpointError where the table is broken."""
    if len(data) < FOOTER_SIZE:
        raise CheckpointError(f"{len(data)} bytes are too few for a table, which ends in {FOOTER_SIZE} bytes of footer")
    if int.from_bytes(data[-8:], "little") != MAGIC:
        raise CheckpointError("it does not end in the magic number of a table: not a checkpoint index, or cut short")
    footer = data[-FOOTER_SIZE:-8]
    metaindex_handle, at = _read_handle(footer, 0)
    index_handle, _ = _read_handle(footer, at)
    _read_block(data, metaindex_handle)  # it says nothing of use, but may not be damaged

    table: dict[bytes, bytes] = {}
    last: bytes | None = None
    keys_size = 0
    end = 0
    for _, encoded in _entries(_read_block(data, index_handle)):
        handle, _ = _read_handle(encoded, 0)
        if handle[0] < end:
            raise CheckpointError("its blocks are out of order")
        end = sum(handle) + TRAILER_SIZE
        for key, value in _entries(_read_block(data, handle)):
            if last is not None and key <= last:
                raise CheckpointError("its keys are out of order")
            keys_size += len(key)
            if keys_size > MAX_KEYS_SIZE:
                raise CheckpointError(f"its keys take more than {MAX_KEYS_SIZE} bytes")
            table[key] = value
            last = key
    return table


def _read_handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return (offset, size), at


def _read_block(data: bytes, handle: tuple[int, int]) -> bytes:
    offset, size = handle
    if offset + size + TRAILER_SIZE > len(data) - FOOTER_SIZE:
        raise CheckpointError(f"a block at {offset} of {size} bytes runs past the end")
    stored = int.from_bytes(data[offset + size + 1 : offset + size + TRAILER_SIZE], "little")
    if masked_crc32c(data[offset : offset + size + 1]) != stored:
        raise CheckpointError(f"the checksum of the block at {offset} is wrong: the file was damaged")
    compression = data[offset + size]
    if compression:
        name = _COMPRESSION.get(compression, f"type {compression}")
        raise CheckpointError(f"the block at {offset} is compressed ({name}); only plain blocks can be read")
    return data[offset : offset + size]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if len(block) < 4 or end < 0:
        raise CheckpointError(f"a block of {len(block)} bytes cannot hold its {restarts} restart offsets")
    at = 0
    key = b""
    while at < end:
        shared, at = read_varint(block, at)
        unshared, at = read_varint(block, at)
        size, at = read_varint(block, at)
        if shared > len(key) or unshared + size > end - at:
            raise CheckpointError("an entry runs past the end of its block")
        if shared + unshared > MAX_KEY_SIZE:
            raise CheckpointError(f"a key of {shared + unshared} bytes; at most {MAX_KEY_SIZE} are allowed")
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + size]
        at += size
