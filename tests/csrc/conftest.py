"""The templates that host and device share, compiled for the host."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.fixture(scope="session")
def compiler() -> list[str]:
    """The command of the C++ compiler, with csrc/ on its include path."""
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no g++ or clang++ on PATH")
    return [found, "-std=c++17", f"-I{CSRC}"]


@pytest.fixture(scope="session")
def harness(compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("harness") / "harness.so"
    source = Path(__file__).with_name("harness.cpp")
    command = [*compiler, "-O1", "-shared", "-fPIC", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(target))
    library.harness_tiles.restype = ctypes.c_int64
    library.harness_nonzero_bytes.restype = ctypes.c_uint32
    return library
