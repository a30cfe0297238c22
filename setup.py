"""Builds bert_fast._C from csrc/: host C++ always, CUDA where nvcc is found. Needs setuptools and pybind11 alone.

Read from the environment: BERT_FAST_CUDA=0|1|auto, BERT_FAST_CUDA_ARCHS="80 90", CUDA_HOME, CXX, CXXFLAGS, MAX_JOBS.
What cannot be built is left out with a warning, and the reason is kept in bert_fast/_build.json for `doctor`.
"""

import hashlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
WRITABLE = os.access(ROOT, os.W_OK)
SCRATCH = tempfile.TemporaryDirectory(prefix="bert_fast-build-")  # new each time: no stale file reaches a wheel
OBJECTS = (ROOT if WRITABLE else Path(SCRATCH.name)) / "build" / "objects"  # kept: a rebuild compiles what changed
DEFAULT_ARCHS = ("75", "80", "86", "89", "90", "100", "120")
HOST_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Icsrc"]


def run(command):
    try:
        return subprocess.check_output(command, cwd=ROOT, text=True, stderr=subprocess.STDOUT)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stdout", None) or str(error)).strip().splitlines()[-20:]
        raise CompileError(f"`{shlex.join(command)}` failed:\n" + "\n".join(said)) from error


def max_jobs():
    n = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count())
    if not re.fullmatch("[1-9][0-9]*", n):
        sys.exit(f"bert_fast: MAX_JOBS must be a positive number, got {n!r}")
    memory = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text() if sys.platform == "linux" else "")
    return max(1, min(int(n), int(memory[1]) // 1_500_000)) if memory else int(n)  # 1.5 GB for each compiler


def host_compiler():
    """The C++ compiler's command, and the flags that module.cpp needs for Python and pybind11."""
    candidates = [os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"]
    found = [shlex.split(command) for command in candidates if command and shutil.which(shlex.split(command)[0])]
    include = sysconfig.get_path("include")
    if not found or sys.platform == "win32":
        raise CompileError("no C++ compiler found: `apt install g++`, `dnf install gcc-c++`, `xcode-select --install`")
    if not os.path.exists(os.path.join(include, "Python.h")):
        raise CompileError(f"{include}/Python.h is missing: `apt install python3-dev` or `dnf install python3-devel`")
    pybind11 = importlib.util.find_spec("pybind11") and importlib.import_module("pybind11")
    if not pybind11:
        raise CompileError("pybind11 is missing: `pip install pybind11`, or leave out --no-build-isolation")
    made_for = f"pybind11 {pybind11.__version__}, {sysconfig.get_config_var('SOABI')}"
    return found[0], [f"-I{include}", f"-I{pybind11.get_include()}", f'-DBERT_FAST_MADE_FOR="{made_for}"']


def cuda_toolkit():
    """nvcc, its version and the architectures to build for, oldest first."""
    homes = [os.path.join(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc", path=os.pathsep.join([*homes, os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
    if not nvcc or sys.platform != "linux":
        raise CompileError("nvcc was not found: set CUDA_HOME=/path/to/cuda or `apt install nvidia-cuda-toolkit`")
    release = re.search(r"release (\d+)\.(\d+)", run([nvcc, "--version"]))
    if not release or tuple(map(int, release.groups())) < (11, 8):  # the first to know sm_89 and sm_90
        raise CompileError(f"{nvcc} ({release and release[0]}) is too old: set CUDA_HOME to CUDA 11.8 or newer")
    known = re.findall(r"compute_(\d+)", run([nvcc, "--list-gpu-arch"]))
    asked = re.sub(r"sm_|\.", "", os.environ.get("BERT_FAST_CUDA_ARCHS", "")).replace(",", " ").replace(";", " ")
    archs = asked.split() or [arch for arch in DEFAULT_ARCHS if arch in known] or known[-1:]
    if unknown := [arch for arch in archs if re.sub("[af]$", "", arch) not in known]:
        sys.exit(f"bert_fast: BERT_FAST_CUDA_ARCHS names {unknown}, but {nvcc} knows {sorted(known, key=int)}")
    return nvcc, f"{release[1]}.{release[2]}", sorted(set(archs), key=lambda arch: int(arch.rstrip("af")))


def compile_object(command, source):
    """The object of a source, named by a hash of all that makes it: command, compiler, source and headers."""
    made_by = repr([run([command[0], "--version"]), *(part for part in command if not part.startswith("-I"))])
    inputs = [path.read_bytes() for path in (source, *sorted(ROOT.glob("csrc/**/*.h")))]
    target = OBJECTS / f"{source.stem}-{hashlib.sha256(b''.join([made_by.encode(), *inputs])).hexdigest()[:16]}.o"
    if not target.exists():
        unfinished = target.with_suffix(f".{os.getpid()}.o")
        run([*command, "-c", os.path.relpath(source, ROOT), "-o", os.path.relpath(unfinished, ROOT)])
        unfinished.replace(target)
    return os.path.relpath(target, ROOT)


def build(target, version, with_cuda):
    """Compiles csrc/ in parallel and links it at `target`."""
    work, (cxx, module_flags) = [], host_compiler()
    link = [*cxx, *(["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"])]
    if with_cuda:
        nvcc, release, archs = cuda_toolkit()
        module_flags += [f'-DBERT_FAST_NVCC="{release}"', f'-DBERT_FAST_ARCHS="{" ".join(archs)}"']
        link = [nvcc, "-shared", "-cudart=static", "--no-device-link", "-Xlinker=--exclude-libs=ALL,-s"]
        groups = [list(group) for _, group in itertools.groupby(archs, lambda arch: arch[:-1])]  # by major version
        # One PTX, the oldest's, for each: the machine code is the same as from every one's own, and sooner made.
        code = [f"-gencode=arch=compute_{same[0]},code=[{','.join(f'sm_{arch}' for arch in same)}]" for same in groups]
        code.append(f"-gencode=arch=compute_{groups[-1][0]},code=compute_{groups[-1][0]}")
        command = [nvcc, "-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Icsrc", *code]
        work += [(command, source) for source in sorted(ROOT.glob("csrc/cuda/*.cu"))]
    command = [*cxx, *HOST_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    work += [(command, source) for source in sorted(ROOT.glob("csrc/host/*.cpp"))]
    work.append(([*command, *module_flags, f'-DBERT_FAST_VERSION="{version}"'], ROOT / "csrc/module.cpp"))
    OBJECTS.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_jobs()) as pool:
        run([*link, *pool.map(lambda job: compile_object(*job), work), "-o", str(target)])


class BuildExtension(build_ext):
    def run(self):
        self.notes, self.installed = [], Path(self.get_ext_fullpath("bert_fast._C"))
        super().run()
        self.installed.parent.mkdir(parents=True, exist_ok=True)
        self.installed.with_name("_build.json").write_text(json.dumps({"notes": self.notes}, indent=1))

    def build_extension(self, ext):
        mode = os.environ.get("BERT_FAST_CUDA", "auto").strip().lower()
        attempts = {"0": [False], "1": [True], "auto": [True, False]}.get(mode)
        for with_cuda in attempts or sys.exit(f"bert_fast: BERT_FAST_CUDA must be 0, 1 or auto, got {mode!r}"):
            try:
                build(Path(self.get_ext_fullpath(ext.name)).resolve(), self.distribution.get_version(), with_cuda)
                break
            except CompileError as failure:
                if mode == "1":
                    sys.exit(f"bert_fast: BERT_FAST_CUDA=1, but {failure}")
                self.installed.unlink(missing_ok=True)  # an older build must not be taken for this one
                if str(failure) not in self.notes:
                    self.notes.append(str(failure))
                    print(f"bert_fast: WARNING: {failure}", file=sys.stderr)


makes_wheel = {"bdist_wheel", "dist_info", "editable_wheel"} & {*sys.argv}
if makes_wheel and not any(map(importlib.util.find_spec, ("wheel", "setuptools.command.bdist_wheel"))):
    sys.exit("bert_fast: setuptools below 70.1 needs wheel: `pip install wheel`, or leave out --no-build-isolation")
setup(
    packages=[*find_packages(include=["bert_fast", "bert_fast.*"]), "bert_fast.kernels"],
    package_dir={"bert_fast.kernels": "kernels"}, package_data={"bert_fast": ["py.typed"]}, license="Apache-2.0",
    ext_modules=[Extension("bert_fast._C", [], optional=True)], cmdclass={"build_ext": BuildExtension},
    options={"build": {"build_base": SCRATCH.name}, **({} if WRITABLE else {"egg_info": {"egg_base": SCRATCH.name}})},
)
