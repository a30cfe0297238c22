"""CRC-32C: the published vectors, the definition bit by bit, and the sizes where the method changes."""

import numpy as np
import pytest
from checkpoints.bundle_writer import masked, slow_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_fast.checkpoints import crc32c as module
from bert_fast.checkpoints.crc32c import crc32c, masked_crc32c

# RFC 3720, appendix B.4, and the check value of the catalogue of parametrised CRCs.
VECTORS = {
    b"123456789": 0xE3069283,
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
    b"": 0x00000000,
}


@pytest.mark.parametrize("data", VECTORS, ids=repr)
def test_published_vectors(data):
    assert crc32c(data) == VECTORS[data]


@given(st.binary(max_size=3000))
@settings(max_examples=60, deadline=None)
def test_agrees_with_the_definition(data):
    assert crc32c(data) == slow_crc32c(data)
    assert masked_crc32c(data) == masked(slow_crc32c(data))


def by_table(data):
    return module._update(0xFFFFFFFF, data) ^ 0xFFFFFFFF


LONG, SHORT, CHUNK = module._LONG_MULTIPLE[0] * 8, module._SHORT_MULTIPLE[0] * 8, module._CHUNK_WORDS * 8


@pytest.mark.parametrize("size", [511, 512, 513, SHORT, 2 * SHORT, LONG, LONG + CHUNK, LONG + 2 * CHUNK], ids=str)
@pytest.mark.parametrize("more", [-8, -1, 0, 1, 7, 8], ids=str)
def test_sizes_where_the_method_changes(size, more):
    data = np.random.default_rng(size + more).integers(0, 256, size + more, dtype=np.uint8).tobytes()
    assert crc32c(data) == by_table(data)


def test_the_table_agrees_with_the_definition():
    data = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8).tobytes()
    assert by_table(data) == slow_crc32c(data)


@pytest.mark.parametrize("exponents", [module._LONG_MULTIPLE, module._SHORT_MULTIPLE], ids=len)
def test_the_polynomials_are_multiples_of_castagnolis(exponents):
    remainder = 0
    for exponent in exponents:
        power = 1
        for _ in range(exponent):
            power <<= 1
            power ^= 0x11EDC6F41 * (power >> 32)
        remainder ^= power
    assert remainder == 0


def test_every_flipped_bit_is_noticed():
    data = bytearray(np.random.default_rng(1).integers(0, 256, 70_000, dtype=np.uint8).tobytes())
    right = crc32c(bytes(data))
    for position in (0, 3, 4, 7, 511, 35_000, 69_991, 69_999):
        data[position] ^= 16
        assert crc32c(bytes(data)) != right
        data[position] ^= 16


def test_the_buffer_is_not_written_to():
    data = np.arange(200_000, dtype=np.uint8)
    before = data.copy()
    crc32c(data.data)
    assert np.array_equal(data, before)
