"""The extension's CUDA code on the host: built with a C++ compiler against csrc/emulator's threads, called through ops.

``emulated`` is a fixture: within a test, ops see a "GPU" whose memory is the CPU's and run their CUDA kernels there, as
Triton's kernels run in their interpreter. What it stands for and what it cannot show: emulator/cuda_runtime.h.
"""

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

CSRC = Path(__file__).resolve().parents[1] / "csrc"
EMULATOR = Path(__file__).resolve().parent / "csrc" / "emulator"


def with_plain_launches(source: str) -> str:
    """CUDA C++ with every ``kernel<<<configuration>>>(arguments)`` as a call of the emulator."""
    while (at := source.find("<<<")) >= 0:
        begin, depth = at, 0
        while depth or re.match(r"[\w:>]", source[begin - 1]):
            begin -= 1
            depth += {">": 1, "<": -1}.get(source[begin], 0)
        configuration_end = source.index(">>>", at)
        end, depth = configuration_end + 3, 0
        while True:
            depth += {"(": 1, ")": -1}.get(source[end], 0)
            end += 1
            if depth == 0:
                break
        kernel, configuration = source[begin:at], source[at + 3 : configuration_end]
        call = f"emulator::launch({configuration}, [=] {{ {kernel}{source[configuration_end + 3 : end]}; }})"
        source = source[:begin] + call + source[end:]
    return source


def build(folder: Path) -> Path:
    """The module at ``folder/_C.so``; built by the first test process that asks, for all of this run."""
    pybind11 = pytest.importorskip("pybind11")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and g++ or clang++ on PATH")
    inputs = sorted([*CSRC.rglob("*.*"), *EMULATOR.iterdir()])
    target = folder / f"_C-{hashlib.sha256(b''.join(path.read_bytes() for path in inputs)).hexdigest()[:16]}.so"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _compile(compiler, pybind11.get_include(), folder, target)
    return target


def _compile(compiler: str, pybind11: str, folder: Path, target: Path) -> None:
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", f"-I{EMULATOR}", f"-I{CSRC}"]
    python = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11}"]
    facts = [f'-DBERT_FAST_{name}="emulated"' for name in ("NVCC", "ARCHS", "VERSION", "MADE_FOR")]
    jobs = [[str(CSRC / "module.cpp"), "-O0", *python, *facts]]
    for source in sorted(CSRC.glob("cuda/*.cu")):
        plain = folder / f"{source.stem}.cpp"
        plain.write_text(with_plain_launches(source.read_text()))
        jobs.append([str(plain), "-O1", "-Wall", "-Wno-unknown-pragmas"])
    jobs += [[str(source), "-O1"] for source in sorted(CSRC.glob("host/*.cpp"))]

    def run(job: tuple[int, list[str]]) -> str:
        made = str(folder / f"{job[0]}.o")
        done = subprocess.run([compiler, *flags, "-c", *job[1], "-o", made], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return made

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(run, enumerate(jobs)))
    unfinished = target.with_suffix(".unfinished")
    done = subprocess.run([compiler, "-shared", *objects, "-o", str(unfinished)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unfinished.replace(target)


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The extension with its CUDA functions running on host memory."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    # Processes of pytest beside each other that are no workers of one (benchmarks/gpu/tests.py) name a folder to share.
    path = str(build(Path(os.environ.get("BERT_FAST_EMULATOR", shared / "emulated"))))
    loader = importlib.machinery.ExtensionFileLoader("_C", path)
    spec = importlib.util.spec_from_file_location("_C", path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def emulated(emulated_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Within the test, CPU tensors are on a device for which the extension has CUDA kernels."""
    from bert_fast import backend, extension  # not before conftest.py has said how kernels run
    from bert_fast.ops import library

    monkeypatch.setattr(extension, "_loaded", (emulated_module, None))
    monkeypatch.setattr(backend, "cuda_reasons", lambda device: ())
    monkeypatch.setattr(library, "launch_on", lambda tensor: (0, 0))
    return emulated_module


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def cuda_device(request: pytest.FixtureRequest) -> str:
    """Where the extension's CUDA kernels run in this test: on a GPU, or emulated, on CPU tensors."""
    if request.param == "cuda":
        return "cuda"
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, and the same test on it")
    request.getfixturevalue("emulated")
    return "cpu"
