"""The templates that host and device share, compiled for the host."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def compile_for_host(source: Path, target: Path, *flags: str) -> None:
    """Compile one C++ file against csrc/, or skip where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no g++ or clang++ on PATH")
    command = [compiler, "-std=c++17", f"-I{CSRC}", *flags, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("harness") / "harness.so"
    compile_for_host(Path(__file__).with_name("harness.cpp"), target, "-O1", "-shared", "-fPIC")
    library = ctypes.CDLL(str(target))
    library.harness_tiles.restype = ctypes.c_int64
    library.harness_nonzero_bytes.restype = ctypes.c_uint32
    return library
