"""The index logic of the CUDA unpad scan, run on the host by harness.cpp, against NumPy."""

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

THREADS = 4  # a block of the harness reads 64 positions at once, so that small masks span many chunks


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def expected(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    visible = mask != 0
    lengths = visible.sum(axis=1)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    return np.flatnonzero(visible), cu_seqlens, [int(lengths.sum()), int(lengths.max(initial=0))]


def check(harness: ctypes.CDLL, mask: np.ndarray, threads: int = THREADS) -> None:
    batch, seqlen = mask.shape
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    indices = np.full(batch * seqlen, -1, dtype=np.int64)
    cu_seqlens = np.full(batch + 1, -1, dtype=np.int32)
    stats = np.full(2, -1, dtype=np.int64)
    sizes = (ctypes.c_int64(batch), ctypes.c_int64(seqlen))
    harness.harness_unpad(pointer(mask), *sizes, threads, pointer(indices), pointer(cu_seqlens), pointer(stats))
    want_indices, want_cu_seqlens, want_stats = expected(mask)
    assert stats.tolist() == want_stats
    np.testing.assert_array_equal(cu_seqlens, want_cu_seqlens)
    np.testing.assert_array_equal(indices[: stats[0]], want_indices)
    assert (indices[stats[0] :] == -1).all(), "positions past the total were written"


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 1), (1, 700), (5, 3), (3, 15), (3, 16), (3, 17), (9, 64), (4, 65), (33, 128), (2, 1000)]
)
def test_unpad_scan_equals_numpy(harness: ctypes.CDLL, shape: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng(shape[0] * 1000 + shape[1])
    check(harness, rng.random(shape) < density)


@pytest.mark.parametrize("threads", [1, 4, 256, 1024])
def test_unpad_scan_equals_numpy_for_every_block_size(harness: ctypes.CDLL, threads: int) -> None:
    rng = np.random.default_rng(threads)
    check(harness, rng.random((37, 501)) < 0.6, threads)


def test_unpad_scan_with_tiles_of_several_chunks(harness: ctypes.CDLL) -> None:
    tile = ctypes.c_int64()
    batch, seqlen = 3001, 41
    tiles = harness.harness_tiles(ctypes.c_int64(batch), ctypes.c_int64(seqlen), ctypes.c_int64(16), ctypes.byref(tile))
    assert tile.value == 32
    assert tiles == -(-batch * seqlen // 32)
    check(harness, np.random.default_rng(0).random((batch, seqlen)) < 0.3, threads=1)


@given(
    batch=st.integers(1, 40),
    seqlen=st.integers(1, 90),
    density=st.sampled_from([0.02, 0.4, 0.97]),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpad_scan_equals_numpy_for_any_mask(
    harness: ctypes.CDLL, batch: int, seqlen: int, density: float, seed: int
) -> None:
    check(harness, np.random.default_rng(seed).random((batch, seqlen)) < density)


def test_any_byte_that_is_not_zero_is_visible(harness: ctypes.CDLL) -> None:
    check(harness, np.arange(256, dtype=np.uint8).reshape(4, 64))
    rng = np.random.default_rng(1)
    words = rng.integers(0, 2**32, 4000, dtype=np.uint64)
    words &= np.where(rng.random(4000) < 0.5, 0xFF00FF00, 0xFFFFFFFF).astype(np.uint64)
    for word in [0, 1, 0x80, 0x80808080, 0x7F7F7F7F, 0xFFFFFFFF, 0x01000000, *words.tolist()]:
        want = sum(1 << k for k in range(4) if word >> 8 * k & 255)
        assert harness.harness_nonzero_bytes(ctypes.c_uint32(word)) == want, hex(word)


@pytest.mark.parametrize(
    ("batch", "seqlen"), [(0, 0), (0, 5), (5, 0), (1, 1), (1, 2**31 + 7), (2**20, 2**12), (10**6, 1), (3, 2**40)]
)
def test_tiles_cover_every_position_and_are_few(harness: ctypes.CDLL, batch: int, seqlen: int) -> None:
    tile = ctypes.c_int64()
    arguments = (ctypes.c_int64(batch), ctypes.c_int64(seqlen), ctypes.c_int64(4096))
    tiles = harness.harness_tiles(*arguments, ctypes.byref(tile))
    assert tiles <= 4096
    assert tile.value % 4096 == 0
    assert tiles * tile.value >= batch * seqlen
    assert tiles == 0 or (tiles - 1) * tile.value < batch * seqlen, "the last tile is empty"


def test_row_starts_beyond_two_to_the_31_positions(harness: ctypes.CDLL) -> None:
    seqlen, row = 7, 2**33 // 7 + 1
    first = row * seqlen - 5  # so that rows begin at the thread's positions 5 and 12
    starts = np.full(2, -1, dtype=np.int32)
    bits = 0b1010_1100_1101_0111
    wide = [ctypes.c_int64(value) for value in (first, 1000, 2**40, seqlen, row)]
    harness.harness_row_starts(ctypes.c_uint32(bits), *wide, pointer(starts))
    assert starts.tolist() == [1000 + (bits & 0b11111).bit_count(), 1000 + (bits & 0xFFF).bit_count()]


def test_cu_seqlens_saturate_rather_than_wrap(harness: ctypes.CDLL) -> None:
    for value, want in [(2**31 - 1, 2**31 - 1), (2**31, 2**31 - 1), (2**40, 2**31 - 1), (0, 0)]:
        assert harness.harness_clamp(ctypes.c_int64(value)) == want
