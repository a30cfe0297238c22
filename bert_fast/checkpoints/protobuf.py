"""The few lines of the protocol buffer wire format that a TensorFlow checkpoint index needs."""

from __future__ import annotations

from collections.abc import Iterator

from bert_fast.checkpoints.source import CheckpointError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_SIZE = {FIXED64: 8, FIXED32: 4}


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned integer of 7 bits a byte, least first, at most 64 bits; and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise CheckpointError("a number runs past the end of its record")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise CheckpointError("a number of more than 64 bits")


def as_int64(value: int) -> int:
    """A varint read as protobuf's int64 and int32: two's complement."""
    return value - (1 << 64) if value >> 63 else value


def fields(message: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """The fields of a message in order: number, wire type, and an int (VARINT, FIXED32, FIXED64) or bytes (BYTES)."""
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = read_varint(message, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = read_varint(message, at)
        elif wire in _FIXED_SIZE:
            size = _FIXED_SIZE[wire]
        else:
            raise CheckpointError(f"field {number} has wire type {wire}, which no current protobuf writes")
        if size > len(message) - at:
            raise CheckpointError(f"field {number} runs past the end of its record")
        payload = message[at : at + size]
        at += size
        yield number, wire, payload if wire == BYTES else int.from_bytes(payload, "little")


def collect(message: bytes, schema: dict[int, tuple[str, int]]) -> dict[str, list]:
    """All values of the fields that `schema` names ({number: (name, wire type)}); other fields are passed over."""
    found: dict[str, list] = {name: [] for name, _ in schema.values()}
    for number, wire, value in fields(message):
        if number in schema:
            name, expected = schema[number]
            if wire != expected:
                raise CheckpointError(f"field {name} has wire type {wire}, not {expected}")
            found[name].append(value)
    return found
