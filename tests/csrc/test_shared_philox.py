"""The Philox of csrc/shared, run on the host by harness.cpp, against Random123's known answers."""

import ctypes

import numpy as np
import pytest

M32 = 2**32 - 1


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((M32, M32, M32, M32), 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_random123s_known_answers(harness: ctypes.CDLL, counter, key, answer) -> None:
    given, words = np.array(counter, dtype=np.uint32), np.zeros(4, dtype=np.uint32)
    pointers = (ctypes.c_void_p(given.ctypes.data), ctypes.c_uint64(key), ctypes.c_void_p(words.ctypes.data))
    harness.harness_philox(*pointers)
    assert tuple(words.tolist()) == answer
