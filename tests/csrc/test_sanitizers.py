"""The host C++ under AddressSanitizer and UndefinedBehaviorSanitizer, over random and extreme inputs."""

import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SANITIZE = ["-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread"]


def test_no_access_beside_a_buffer_and_no_undefined_behaviour(compiler: list[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() { return 0; }\n")
    probe = subprocess.run([*compiler, *SANITIZE, str(empty), "-o", str(tmp_path / "empty")], capture_output=True)
    if probe.returncode or subprocess.run([str(tmp_path / "empty")], capture_output=True).returncode:
        pytest.skip("the compiler here comes without working sanitizers")
    sources = [str(Path(__file__).with_name("sanitized.cpp")), *map(str, sorted((CSRC / "host").glob("*.cpp")))]
    program = str(tmp_path / "sanitized")
    done = subprocess.run([*compiler, *SANITIZE, *sources, "-o", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("ok "), done.stdout
