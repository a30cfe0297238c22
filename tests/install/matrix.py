"""Installs bert_fast in every way and on every kind of machine that this one can imitate, and asks doctor each time.

    python tests/install/matrix.py [--only WORD] [--torch 2.10.0 --torch newest]

Run by hand, and by `.ci/run --full`; tests/test_build.py has the same faults with stubs, in seconds. Each line is a
fresh virtual environment that borrows torch and the other dependencies from the environment that runs this script.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
SHELL = ("cat", "sh", "bash", "env", "dirname", "uname", "mount", "touch")
COMPILER = ("c++", "g++", "gcc", "cc", "clang++", "as", "ld")
FAKE_NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release {release}, V{release}.0" ;;
  *--list-gpu-arch*) echo compute_80; echo compute_90 ;;
  *) echo "nvcc fatal: Unsupported gcc" >&2; exit 1 ;;
esac
"""


class Failed(Exception):
    """A line of the matrix is not as it should be; the text says what was seen."""


@dataclass
class Line:
    """One way to install, and what must come of it."""

    name: str
    install: Callable[["Place"], None]
    python: str = sys.executable
    compiler: bool = True
    nvcc: str | None = "real"  # "real", "old", "failing" or None: absent
    note: str | None = None  # what doctor must say was left out of the build
    doctor: bool = True  # False where torch cannot be borrowed: only the extension is asked
    torch: str | None = None  # a version to install rather than borrow


@dataclass
class Place:
    """Where a line is tried: its folder, sources, environment variables and Python."""

    folder: Path
    tree: Path
    env: dict[str, str]
    python: Path = field(init=False)

    def __post_init__(self) -> None:
        self.python = self.folder / "venv" / "bin" / "python"

    def run(self, *command: str | Path, env: dict[str, str] | None = None) -> str:
        """The command's output; Failed with its last lines if it fails."""
        done = subprocess.run(
            list(map(str, command)), cwd=self.folder, env=env or self.env, capture_output=True, text=True
        )
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines()
            raise Failed(f"`{' '.join(map(str, command[-4:]))}`: " + " | ".join(said[-8:]))
        return done.stdout

    def pip(self, *arguments: str | Path) -> None:
        """pip of this place's environment, without dependencies."""
        self.run(self.python, "-m", "pip", "install", "-q", "--no-deps", *arguments)


def main() -> int:
    """Run the lines and print one row each; exit status 1 if any is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="lines whose name has this word")
    parser.add_argument("--torch", action="append", default=[], help="also with this torch (or `newest`) and one wheel")
    options = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory(prefix="bert_fast-matrix-") as scratch:
        pristine = _copy_of_the_sources(Path(scratch) / "pristine")
        for number, line in enumerate(_lines(options.torch)):
            if options.only not in line.name:
                continue
            folder = Path(scratch) / str(number)
            began = time.perf_counter()
            try:
                verdict = _try(line, folder, pristine)
            except Failed as failure:
                failures += 1
                verdict = f"FAILED: {failure}"
            print(f"{line.name:44s} {time.perf_counter() - began:5.0f} s  {verdict}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{failures} failed" if failures else "all as they should be")
    return 1 if failures else 0


def _lines(torches: Iterable[str]) -> Iterable[Line]:
    yield Line("pip install .", lambda p: p.pip(p.tree))
    yield Line("pip install -e .", lambda p: p.pip("-e", p.tree))
    yield Line("pip install --no-build-isolation .", lambda p: _without_isolation(p, p.tree))
    yield Line("pip install --no-build-isolation -e .", lambda p: _without_isolation(p, "-e", p.tree))
    for version in ("65.5.0", "77.0.3"):
        yield Line(f"no isolation, setuptools {version}", lambda p, v=version: _with_setuptools(p, v))
    yield Line("sdist", _from_sdist)
    yield Line("wheel", _from_wheel)
    yield Line("no nvcc", lambda p: p.pip(p.tree), nvcc=None, note="nvcc was not found: set CUDA_HOME=")
    yield Line("nvcc of CUDA 11.0", lambda p: p.pip(p.tree), nvcc="old", note="is too old: set CUDA_HOME to CUDA 11.8")
    yield Line("nvcc that fails", lambda p: p.pip(p.tree), nvcc="failing", note="nvcc fatal: Unsupported gcc")
    note = "no C++ compiler found: `apt install g++`"
    yield Line("no compiler", lambda p: p.pip(p.tree), compiler=False, nvcc=None, note=note)
    yield Line("read-only sources", _from_read_only_tree)
    for python in _other_pythons():
        name = subprocess.run([python, "--version"], capture_output=True, text=True).stdout.strip()
        yield Line(name, lambda p: p.pip(p.tree), python=python, doctor=False)
    for version in torches:
        yield Line(f"the same wheel, torch {version}", _from_wheel, torch=version)


def _try(line: Line, folder: Path, pristine: Path) -> str:
    tree = folder / "sources with spaces"
    shutil.copytree(pristine, tree)
    place = Place(folder, tree, _environment(line, folder))
    subprocess.run([line.python, "-m", "venv", str(folder / "venv")], check=True, capture_output=True)
    _equip(line, place)
    line.install(place)
    for built in (tree / "build" / "objects").glob("*.o"):  # the next line need not compile it again
        (pristine / "build" / "objects").mkdir(parents=True, exist_ok=True)
        shutil.copy(built, pristine / "build" / "objects")
    return _verdict(line, place)


def _verdict(line: Line, place: Place) -> str:
    code = "import json, bert_fast; print(json.dumps(bert_fast.build_info()))"
    info = json.loads(place.run(place.python, "-W", "ignore", "-c", code).splitlines()[-1])
    expected = (line.compiler, line.nvcc == "real" and NVCC is not None)
    if (info["extension"], info["cuda"]) != expected:
        raise Failed(f"extension and CUDA should be {expected}: {info}")
    notes = "; ".join(info["notes"])
    if line.note is not None and line.note not in notes:
        raise Failed(f"should say {line.note!r}, says {notes!r}")
    if line.note is None and notes and NVCC:
        raise Failed(f"should leave nothing out, but says {notes!r}")
    cuda = f"CUDA {info['nvcc']} for {' '.join(info['archs'])}" if info["cuda"] else "no CUDA"
    found = f"{'extension' if info['extension'] else 'pure Python'}, {cuda}"
    if line.doctor:
        # Its exit status is 1 where there is a problem; the report says more.
        command = [str(place.folder / "venv" / "bin" / "bert-fast"), "doctor", "--json"]
        done = subprocess.run(command, cwd=place.folder, env=place.env, capture_output=True, text=True)
        if not done.stdout.startswith("{"):
            raise Failed(f"doctor: {done.stderr[-600:]}")
        report = json.loads(done.stdout)
        if not report["ok"]:
            raise Failed(f"doctor: {report['problems']}")
        found += f"; doctor: all well, {len(report['ops'])} self-tests, torch {report['versions']['torch']}"
    return f"{found}; {notes.splitlines()[0]}" if notes else found


# ---------------------------------------------------------------- machines


def _copy_of_the_sources(target: Path) -> Path:
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "_build.json", "*.egg-info", ".*cache", ".hypothesis")
    for name in ("bert_fast", "csrc", "kernels", "tests", "benchmarks", ".ci"):
        shutil.copytree(ROOT / name, target / name, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, target)
    # Only the toolkit that a line offers is found, as on a machine that has no other.
    setup = target / "setup.py"
    setup.write_text(setup.read_text().replace('"/usr/local/cuda/bin"', '"/nonexistent"'))
    return target


def _environment(line: Line, folder: Path) -> dict[str, str]:
    tools = folder / "bin"
    tools.mkdir()
    for tool in (*SHELL, *COMPILER) if line.compiler else SHELL:
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    hidden = re.compile("CUDA_HOME|CUDA_PATH|CXX.*|CC|BERT_FAST.*|PYTHONPATH|VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if not hidden.fullmatch(name)}
    env |= {"PATH": str(tools), "BERT_FAST_CUDA_ARCHS": "90", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if line.nvcc == "real":
        return env | {"CUDA_HOME": str(Path(NVCC).parents[1])} if NVCC else env
    if line.nvcc:
        nvcc = folder / "cuda" / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(FAKE_NVCC.format(release="11.0" if line.nvcc == "old" else "13.0"))
        nvcc.chmod(0o755)
        env["CUDA_HOME"] = str(folder / "cuda")
    return env


def _equip(line: Line, place: Place) -> None:
    """torch and the other dependencies: lent by the environment of this script, or torch of the version asked for."""
    if line.torch is not None:
        wanted = ["torch"] if line.torch == "newest" else [f"torch=={line.torch}"]
        # Whatever holds this machine back to some version does not count: the version is what is tried.
        free = place.env | {"PIP_CONFIG_FILE": os.devnull, "PIP_CONSTRAINT": ""}
        rest = ["numpy", "safetensors", "tokenizers", "huggingface_hub"]
        place.run(place.python, "-m", "pip", "install", "-q", *wanted, *rest, env=free)
    elif line.doctor:
        import torch

        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        folder = Path(place.run(place.python, "-c", code).strip())
        (folder / "lent.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")


def _other_pythons() -> list[str]:
    """One interpreter of each other version from 3.10 on that pyenv or the system has."""
    folders = [*sorted(Path.home().glob(".pyenv/versions/*/bin")), Path("/usr/bin"), Path("/usr/local/bin")]
    found: dict[tuple[int, int], str] = {}
    for folder in folders:
        for minor in range(10, 16):
            python = folder / f"python3.{minor}"
            if (3, minor) != sys.version_info[:2] and os.access(python, os.X_OK):
                found.setdefault((3, minor), str(python))
    return [found[version] for version in sorted(found)]


# ---------------------------------------------------------------- ways to install


def _without_isolation(place: Place, *arguments: str | Path) -> None:
    place.pip("setuptools>=77", "pybind11")
    place.pip("--no-build-isolation", *arguments)


def _with_setuptools(place: Place, version: str) -> None:
    place.pip(f"setuptools=={version}", "wheel", "pybind11")
    for arguments in (["-e", place.tree], [place.tree]):
        place.pip("--no-build-isolation", *arguments)


def _from_sdist(place: Place) -> None:
    place.run(place.python, "-m", "pip", "install", "-q", "build")
    place.run(place.python, "-m", "build", "--sdist", "--outdir", place.folder, place.tree)
    place.pip(next(place.folder.glob("bert_fast-*.tar.gz")))


def _from_wheel(place: Place) -> None:
    place.run(place.python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place.folder, place.tree)
    place.pip(next(place.folder.glob("bert_fast-*.whl")))


def _from_read_only_tree(place: Place) -> None:
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && ! touch "$0/x" 2>/dev/null && exec "$@"'
    namespace = [shutil.which("unshare") or "unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    install = [place.python, "-m", "pip", "install", "-q", "--no-deps", place.tree]
    place.run(*namespace, "sh", "-c", mount, place.tree, *install)


if __name__ == "__main__":
    sys.exit(main())
