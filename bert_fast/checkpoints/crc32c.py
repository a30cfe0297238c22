"""CRC-32C (Castagnoli) of large buffers in numpy, at memory speed rather than interpreter speed.

A CRC is the remainder of the message, read as a polynomial over GF(2), by a fixed polynomial P. In characteristic two
P(x) ** 2**k == P(x ** 2**k), so P also divides the message read in *words*: with y = x**64 every 64-bit word is one
coefficient, and one step of the division is an exclusive-or of whole slices. Any multiple of P serves as well as P,
and one with few terms costs few passes. Only the last few hundred bytes go through the usual table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Multiples of P, as exponents, found by search: few terms, and a wide gap below the first, which is the slice length.
_LONG_MULTIPLE = (6777, 484, 100, 0)
_SHORT_MULTIPLE = (290, 136, 113, 107, 32, 0)

_CHUNK_WORDS = 1 << 15
"""Words folded at a time: 256 KiB, so that the passes over them stay in the cache."""

_MASK_DELTA = 0xA282EAD8


def _byte_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _byte_table()


def _update(state: int, data: bytes) -> int:
    for byte in data:
        state = (state >> 8) ^ _TABLE[(state ^ byte) & 0xFF]
    return state


def _divide(words: np.ndarray, exponents: Sequence[int], scale: int = 1) -> np.ndarray:
    """Divide `words` (highest power first, overwritten) by a polynomial of y**scale; return its end, the remainder."""
    degree, *lower = (exponent * scale for exponent in exponents)
    end = len(words) - degree
    step = degree - lower[0]
    for start in range(0, end, step):
        width = min(step, end - start)
        leading = words[start : start + width]
        for exponent in lower:
            target = words[start + degree - exponent :][:width]
            np.bitwise_xor(target, leading, out=target)
    return words[max(end, 0) :]


def _divide_by_halves(words: np.ndarray, exponents: Sequence[int]) -> np.ndarray:
    """`_divide`, but in slices as long as can be: by y**(2**k) for falling k. For a few thousand words at most."""
    for power in range(max(len(words) // exponents[0], 1).bit_length() - 1, -1, -1):
        words = _divide(words, exponents, 1 << power)
    return words


def _remainder(data: np.ndarray) -> np.ndarray:
    """A few hundred bytes congruent to `data` (uint8, a multiple of 8 of them), the initial register mixed in."""
    words = len(data) // 8
    kept = min(words, _LONG_MULTIPLE[0])
    buffer = np.empty(min(words, kept + _CHUNK_WORDS), dtype=np.uint64)
    raw = buffer.view(np.uint8)
    raw[: kept * 8] = data[: kept * 8]
    raw[:4] ^= 0xFF  # the register starts at all ones
    for start in range(kept, words, _CHUNK_WORDS):
        fresh = min(_CHUNK_WORDS, words - start)
        raw[kept * 8 : (kept + fresh) * 8] = data[start * 8 : (start + fresh) * 8]
        buffer[:kept] = _divide(buffer[: kept + fresh], _LONG_MULTIPLE)
    rest = _divide_by_halves(buffer[:kept], _SHORT_MULTIPLE)
    return _divide_by_halves(rest.view(np.uint8), _SHORT_MULTIPLE)


def crc32c(data: bytes | memoryview) -> int:
    """The CRC-32C of a contiguous buffer (RFC 3720, appendix B.4): `crc32c(b"123456789") == 0xE3069283`."""
    if memoryview(data).nbytes < 512:
        return _update(0xFFFFFFFF, memoryview(data).tobytes()) ^ 0xFFFFFFFF
    view = np.frombuffer(data, dtype=np.uint8)
    body = len(view) // 8 * 8
    state = _update(0, _remainder(view[:body]).tobytes())
    return _update(state, view[body:].tobytes()) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """`crc32c(data)` rotated and offset, as TensorFlow and LevelDB store it beside the data it protects."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF
